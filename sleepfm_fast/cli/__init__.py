"""What all commands share: options, paths, refusals, exit status and interruption."""
