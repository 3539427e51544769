"""How work is run: compiled loops, threads, worker processes and clusters."""
