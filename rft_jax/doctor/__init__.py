"""The examination before training: reward variance, faults, reward hacking, leakage, cost."""
