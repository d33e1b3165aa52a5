r"""NOTEBOOK
"""
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.reward_model import RewardModelConfig
from rft_jax.data.rows import DataConfig
from rft_jax.optim import OptimConfig

DATA = 'runs/arithmetic/data'
BASE = 'runs/arithmetic/warmed_up'
MAKE = ('python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 '
        '--train_rows=2700 --pairs=1100')


def get_config(data: str = DATA) -> configs.Config:
  """Returns the run on a directory with pairs.jsonl, or on a file of pairs of your own.

  Args:
    data: a directory as MAKE fills it, or a file of pairs: then --config.data.validation names the
      held-out ones, and --config.model.source what the reward model is made of.

  Raises:
    ValueError: there are no pairs.
  """
  path = pathlib.Path(data)
  pairs = path / 'pairs.jsonl' if path.is_dir() or not path.suffix else path
  if not pairs.is_file():
    raise ValueError(f'{pairs}: there are no pairs yet; make them with {MAKE} --to={data}')
  ours = pairs.name == 'pairs.jsonl'
  return configs.Config(
      model=configs.ModelConfig(source=BASE if ours else ''),
      data=DataConfig(train=str(pairs),
                      validation=str(pairs.with_name('pairs_validation.jsonl')) if ours else ''),
      stages=(configs.Stage(algorithm='reward_model', steps=150, optim=OptimConfig(
          learning_rate=3e-4, schedule='cosine', warmup_steps=5, final_fraction=0.1)),),
      reward_model=RewardModelConfig(pairs_per_step=32, centring=0.01),
      evaluate=configs.EvaluateConfig(every=50),
      checkpoints=configs.CheckpointConfig(every=50))
