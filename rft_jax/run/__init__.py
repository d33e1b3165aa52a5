"""The training loop and what surrounds it: build, startup, evaluation, results."""
