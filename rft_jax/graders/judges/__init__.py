"""Model judges (LLM as a judge): configuration, backends, prompts, verdict cache, grading."""
