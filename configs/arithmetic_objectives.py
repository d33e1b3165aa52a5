r"""One warmed-up model of sums with a product, reinforced in many ways: which objective lifts it?

  python scripts/compare_objectives.py --to=runs/objectives

makes the task, the warm-up of configs/arithmetic_grpo.py and its export, and trains every arm with
seeds 0, 1 and 2, each as

  python -m rft_jax.main --config=configs/arithmetic_objectives.py:ARM --workdir=...
"""
import dataclasses

from rft_jax import config as configs
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.objectives.off_policy import CorrectionConfig
from rft_jax.objectives.policy_choices import PolicyLossConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

HERE = 'runs/objectives'  # holds data/ and warm/, an HF directory
STEPS = 60


def _policy(loss, level='token', aggregation='token_mean', correction='tis'):
  return ObjectiveConfig(policy_loss=PolicyLossConfig(loss=loss, ratio_level=level),
                         aggregation=aggregation,
                         correction=CorrectionConfig(correction=correction))


# What differs between the arms: {arm: {group of the config: its value}}.
ARMS = {
    'grpo': {},
    'dr_grpo': {'advantage': AdvantageConfig(scale='none'),
                'objective': _policy('clip', aggregation='constant')},
    'dapo': {'advantage': AdvantageConfig(overlong_buffer=8),
             'rollout': {'refill_rounds': 2}},
    'gspo': {'objective': _policy('clip', 'sequence', 'sequence_mean')},
    'cispo': {'objective': _policy('cispo')},
    'gmpo': {'objective': _policy('gmpo', aggregation='sequence_mean')},
    'sapo': {'objective': _policy('sapo')},
    'rloo': {'advantage': AdvantageConfig(estimator='rloo'),
             'objective': _policy('policy_gradient', 'none', 'sequence_sum')},
    'reinforce_plus_plus': {'advantage': AdvantageConfig(estimator='reinforce_plus_plus')},
    'remax': {'advantage': AdvantageConfig(estimator='remax'),
              'objective': _policy('policy_gradient', 'none', 'sequence_sum')},
    'ppo': {'critic': CriticConfig(warmup_steps=5, gae_lambda=1.0,
                                   optim=OptimConfig(learning_rate=1e-3))},
}


def get_config(arm: str = 'grpo', directory: str = HERE) -> configs.Config:
  """Returns the run of one arm from the warmed-up model in directory.

  Raises:
    ValueError: there is no such arm.
  """
  if arm not in ARMS:
    raise ValueError(f'no arm {arm!r}; there are {", ".join(ARMS)}')
  changes = dict(ARMS[arm])
  rollout = RolloutConfig(prompts_per_step=32, samples_per_prompt=8, max_new_tokens=40)
  if 'rollout' in changes:
    rollout = dataclasses.replace(rollout, **changes.pop('rollout'))
  return configs.Config(
      model=configs.ModelConfig(source=f'{directory}/warm'),
      data=DataConfig(train=f'{directory}/data/answers.jsonl',
                      validation=f'{directory}/data/validation.jsonl'),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=f'{directory}/data/grader.json',
      stages=(configs.Stage(algorithm='ppo' if arm == 'ppo' else 'grpo', steps=STEPS,
                            optim=OptimConfig(learning_rate=2e-4, warmup_steps=3)),),
      rollout=rollout, update=configs.UpdateConfig(updates_per_batch=2),
      evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
      checkpoints=configs.CheckpointConfig(every=0), **changes)
