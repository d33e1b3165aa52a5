r"""Reward model from pairs of a right and a wrong solution, and its accuracy on held-out pairs.

  python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 --train_rows=2700 \
    --pairs=2700 --layers=4 --to=runs/arithmetic_pairs/data
  python -m rft_jax.main --config=configs/preferences_reward_model.py \
    --workdir=runs/arithmetic_pairs/reward_model

A model of 0.9 M parameters is first trained on the right solutions (SFT, 600 steps of 32), then to
rank the right solution above the wrong one (400 steps of 32 pairs, 4.7 epochs). The wrong one has
an error in one step, carried through the later steps. 300 sums are held out. Seed 0; 95 %
intervals over the pairs.

Hardware and time: two cores of an AMD EPYC shared with other work, 5.5 min of CPU time.

  step   pair accuracy
   700   0.610 [0.550, 0.667]
   800   0.637 [0.583, 0.693]
   900   0.687 [0.633, 0.737]
  1000   0.730 [0.680, 0.777]

A trunk of 2 layers did worse: the policy of configs/arithmetic_grpo.py after its warm-up (trained
on 1600 of the solutions), at a learning rate of 1e-3, reached 0.600 [0.543, 0.657] after 500 steps
with the same pairs, and 0.610 [0.557, 0.667] after 400 steps with 1100 of them; pairs of the batch
were then at 0.875. DPO gets 0.81 on the same errors from the log-probs of that policy, see
configs/preferences_dpo.py. A possible reason: detecting a wrong digit means comparing it with the
expected one, which a policy computes in its last layer; a head needs layers after that one.

Whether such a model is useful as a grader is a separate question: see configs/preferences_ppo.py.

Your own pairs: the policy in model.source becomes the reward model, without a warm-up.

  python -m rft_jax.main --config=configs/preferences_reward_model.py:pairs.jsonl --workdir=DIR \
    --config.data.validation=held_out.jsonl --config.model.source=HF-DIRECTORY
"""

import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.reward_model import RewardModelConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.rows import DataConfig
from rft_jax.training.optim import OptimConfig

DATA = 'runs/arithmetic_pairs/data'
MAKE = (
  'python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 '
  '--train_rows=2700 --pairs=2700 --layers=4'
)


def get_config(data: str = DATA) -> configs.Config:
  """Returns the run on a directory with pairs.jsonl, or on your own file of pairs.

  Args:
    data: a directory written by MAKE. Or a file of pairs: then --config.data.validation is the
      held-out pairs, and --config.model.source the model to initialize the reward model from.

  Raises:
    ValueError: the file of pairs is missing.
  """
  path = pathlib.Path(data)
  pairs = path / 'pairs.jsonl' if path.is_dir() or not path.suffix else path
  if not pairs.is_file():
    raise ValueError(f'{pairs} is missing; write it with {MAKE} --to={data}')
  built_in = pairs.name == 'pairs.jsonl'
  warm_up = configs.Stage(
    algorithm='sft',
    steps=600,
    optim=OptimConfig(learning_rate=2e-3, schedule='cosine', warmup_steps=20, final_fraction=0.05),
  )
  ranking = configs.Stage(
    algorithm='reward_model',
    steps=400,
    optim=OptimConfig(learning_rate=5e-4, schedule='cosine', warmup_steps=10, final_fraction=0.1),
  )
  return configs.Config(
    model=configs.ModelConfig(source=str(path / 'base') if built_in else ''),
    data=DataConfig(
      train=str(pairs),
      validation=str(pairs.with_name('pairs_validation.jsonl')) if built_in else '',
    ),
    stages=(warm_up, ranking) if built_in else (ranking,),
    sft=SftConfig(rows_per_step=32),
    reward_model=RewardModelConfig(pairs_per_step=32, centring=0.01),
    evaluate=configs.EvaluateConfig(every=100),
    checkpoints=configs.CheckpointConfig(every=200),
  )
