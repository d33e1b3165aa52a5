"""python -m rft_jax.tasks with few rows and a tiny base checkpoint."""

from rft_jax.tasks import __main__ as command

SMALL = (
  '--train_rows=40',
  '--validation_rows=20',
  '--dim=32',
  '--heads=2',
  '--kv_heads=1',
  '--mlp_dim=32',
  '--layers=1',
)


def run(task, to, *options):
  """Writes the task into the directory `to`; returns the exit code."""
  return command.main([task, f'--to={to}', *SMALL, *options])
