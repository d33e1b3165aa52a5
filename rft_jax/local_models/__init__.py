"""Models that grade in the same process: a judge, and reward models."""
