"""The rollout engine: token ids in, token ids out, no text. Start at engine.py."""
