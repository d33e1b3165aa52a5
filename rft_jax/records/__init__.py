"""Files that a run writes: manifest, metrics, events, graded samples and checkpoints."""
