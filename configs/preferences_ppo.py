r"""PPO against the reward model of preferences_reward_model.py: an example of reward hacking.

  (the policy: the first three commands of configs/preferences_dpo.py; the reward model: as above)
  python -m rft_jax.main --config=configs/preferences_ppo.py --workdir=runs/arithmetic/ppo
  python -m rft_jax.main --config=configs/preferences_ppo.py --workdir=runs/arithmetic/ppo \
    --mode=evaluate "--config.chat.reasoning=('<think>', '</think>')" \
    --config.grader=runs/arithmetic_pairs/data/grader.json --config.rollout.ungradable_reward=0

The policy is the warm-up model of configs/arithmetic_grpo.py, 0.46 M parameters; the reward model,
and the critic initialized from it, have twice as many. 80 steps of 32 prompts with 4 samples, on
the sums that the reward model was trained on. 300 sums are held out: 4 samples each at temperature
1 and one greedy; 95 % intervals over the rows; seed 0.

Hardware and time: two cores of an AMD EPYC shared with other work, 4 min of CPU time.

                          before                   after 80 steps
  score, sampled          0.783 [0.679, 0.884]     0.976 [0.880, 1.070]
  score, greedy           0.835 [0.728, 0.941]     1.092 [0.998, 1.179]
  right answers, sampled  0.358 [0.318, 0.400]     0.198 [0.163, 0.233]

PPO raises the score of the reward model while fewer answers are right. The reward model separates
a right solution from one with a generated error (0.730 of the pairs), but not from the policy's
own mistakes: among the 128 samples of the first step, a right one has a higher score than a wrong
one in 0.55 of the cases. Pairs of the policy's own samples, right against wrong (3958 of them, the
same trunk, 300 steps), did not fix it: 0.560 [0.492, 0.628] on 191 held-out pairs, score 0.038 to
0.231, right answers 0.358 to 0.155 [0.123, 0.188]. So evaluate a reward model on samples of the
policy before optimizing against it, and monitor an independent grade during training.
"""

import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

DATA = 'runs/arithmetic_pairs/data'
BASE = 'runs/arithmetic/warmed_up'
REWARD_MODEL = 'runs/arithmetic_pairs/reward_model/export'


def get_config(reward_model: str = REWARD_MODEL) -> configs.Config:
  """Returns the run against a reward model.

  Args:
    reward_model: an HF directory, as exported by configs/preferences_reward_model.py.

  Raises:
    ValueError: the directory has no reward model.
  """
  if not (pathlib.Path(reward_model) / 'config.json').is_file():
    raise ValueError(
      f'{reward_model}/config.json is missing; train a reward model with '
      'configs/preferences_reward_model.py'
    )
  return configs.Config(
    model=configs.ModelConfig(source=BASE),
    data=DataConfig(train=f'{DATA}/pairs.jsonl', validation=f'{DATA}/validation.jsonl'),
    # No chat.reasoning: the reward model scores the reasoning together with the answer.
    grader={'type': 'reward_model', 'name': 'liked', 'model': reward_model},
    stages=(
      configs.Stage(
        algorithm='ppo', steps=80, optim=OptimConfig(learning_rate=2e-4, warmup_steps=3)
      ),
    ),
    critic=CriticConfig(
      source=reward_model, optim=OptimConfig(learning_rate=3e-4), gae_lambda=1.0, warmup_steps=5
    ),
    objective=ObjectiveConfig(kl_coef=0.02, kl_place='reward'),
    rollout=RolloutConfig(
      prompts_per_step=32, samples_per_prompt=4, max_new_tokens=40, ungradable_reward=-4.0
    ),
    evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
    checkpoints=configs.CheckpointConfig(every=40),
  )
