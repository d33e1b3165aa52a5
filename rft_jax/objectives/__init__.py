"""Pure functions on arrays: advantages, losses, KL, log-probs. No models, no text, no state."""
