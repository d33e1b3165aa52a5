"""What a run leaves behind: manifest, metrics, graded samples, checkpoints and the report."""
