"""Models that grade in the process of the run: a judge (LLM) and reward models."""
