"""What is examined before training: data, grader, policy and cost."""
