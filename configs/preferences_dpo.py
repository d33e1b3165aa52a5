r"""NOTEBOOK
"""
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.dpo import DpoConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.preference_losses import PreferenceConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

DATA = 'runs/arithmetic/data'
BASE = 'runs/arithmetic/run/export'
MAKE = ('python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 '
        '--train_rows=2700 --pairs=1100')


def get_config(data: str = DATA) -> configs.Config:
  """Returns the run on a directory with pairs.jsonl, or on a file of pairs of your own.

  Args:
    data: a directory as MAKE fills it: its grader is used beside the held-out pairs. Or a file
      of pairs: then nothing is sampled, and --config.data.validation names the held-out pairs.

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
      chat=ChatConfig(reasoning=('<think>', '</think>') if ours else None),
      grader=str(path / 'grader.json') if ours else '',
      stages=(configs.Stage(algorithm='dpo', steps=100, optim=OptimConfig(
          learning_rate=1e-4, warmup_steps=5)),),
      dpo=DpoConfig(preference=PreferenceConfig(loss='dpo', beta=0.1), pairs_per_step=32),
      rollout=RolloutConfig(max_new_tokens=40),
      evaluate=configs.EvaluateConfig(every=25, samples_per_prompt=4),
      checkpoints=configs.CheckpointConfig(every=50))
