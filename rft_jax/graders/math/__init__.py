"""The `math` grader and its worker processes."""
