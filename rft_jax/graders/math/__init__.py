"""The `math` grader, and the worker processes in which math-verify runs."""
