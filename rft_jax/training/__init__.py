"""The update: gradients, optimizers, schedules."""
