"""Contrastive training: options, order of the clips, step, loop and several processes; ``train`` calls it."""
