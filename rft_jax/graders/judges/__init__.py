"""Model judges: who answers, prompts, the cache of answers, and reading a verdict."""
