"""The training loop and what surrounds it: build, startup, stages, evaluation, results."""
