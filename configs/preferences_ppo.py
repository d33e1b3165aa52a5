r"""NOTEBOOK
"""
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

DATA = 'runs/arithmetic/data'
BASE = 'runs/arithmetic/warmed_up'
REWARD_MODEL = 'runs/arithmetic/reward_model/export'


def get_config(reward_model: str = REWARD_MODEL) -> configs.Config:
  """Returns the run against a reward model.

  Args:
    reward_model: an HF directory, as configs/preferences_reward_model.py leaves it.

  Raises:
    ValueError: there is none.
  """
  if not (pathlib.Path(reward_model) / 'config.json').is_file():
    raise ValueError(f'{reward_model}: there is no reward model yet; make one with '
                     'configs/preferences_reward_model.py')
  return configs.Config(
      model=configs.ModelConfig(source=BASE),
      data=DataConfig(train=f'{DATA}/pairs.jsonl', validation=f'{DATA}/validation.jsonl'),
      # The reward model reads the reasoning too: it is part of the answer here.
      grader={'type': 'reward_model', 'name': 'liked', 'model': reward_model},
      stages=(configs.Stage(algorithm='ppo', steps=60, optim=OptimConfig(
          learning_rate=2e-4, warmup_steps=3)),),
      critic=CriticConfig(source=reward_model, optim=OptimConfig(learning_rate=3e-4),
                          gae_lambda=1.0, warmup_steps=5),
      objective=ObjectiveConfig(kl_coef=0.02, kl_place='reward'),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=4, max_new_tokens=40,
                            ungradable_reward=-4.0),
      evaluate=configs.EvaluateConfig(every=20, samples_per_prompt=4),
      checkpoints=configs.CheckpointConfig(every=20))
