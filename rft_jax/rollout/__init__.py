"""From prompts to graded samples: sampling, the grading queue, credit per reasoning step, state values."""
