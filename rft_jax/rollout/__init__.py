"""From prompts to graded samples: rollout, grading queue, credit assignment, state values."""
