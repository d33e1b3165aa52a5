r"""Sums with one product, such as 7 - 14 * 6: warm-up on short rationales, then GRPO on answers.

  python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 --train_rows=2700 \
    --to=runs/arithmetic/data
  python -m rft_jax.main --config=configs/arithmetic_grpo.py --workdir=runs/arithmetic/run

The warm-up shows 1600 problems with their one intermediate step; GRPO gets 1100 others, of which
it learns nothing but whether the answer was right. 300 are held out; 4 samples each at temperature
1 and one greedy; 95 % intervals. 0.46 M parameters, trained from scratch.

Hardware and time: one core of an AMD EPYC, 3.5 min of processor time, of which the warm-up is half;
4.5 min by the clock, as the core was shared with other work.

  step              0      800 (warmed up)           880 (reinforced)
  grade, sampled    0      0.422 [0.377, 0.465]      0.492 [0.443, 0.541]
  grade, greedy     0      0.513 [0.453, 0.567]      0.533 [0.477, 0.590]
  pass@4            0      0.637                     0.640
  tokens            37.6   20.0                      20.0

Paired over the problems, step 880 - step 800: sampled +0.071 [0.038, 0.105], greedy +0.02
[-0.03, 0.07]; training reward from 0.45 to 0.55. So in 80 steps the policy learns to trust what
it half knows, rather than new sums: what four samples could find stays the same. Products are
right in 97 % of the samples before and after, the sum behind them in 43 %, then 50 %.
More warm-up in place of the reinforcement was not tried here; see rare_disease_demo.py for that.

What did not work: GRPO on the rows of the warm-up, since those are known by heart (training reward
0.79, held-out 0.57 before and after); and learning rates from 3e-4 on after a short warm-up, where
one sample in ten was right (0.11 to 0.03 in 100 steps at 5e-4; at 1e-4 0.11 to 0.16).
"""

import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

DATA = 'runs/arithmetic/data'
MAKE = 'python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=19 --train_rows=2700'
WARM_UP_ROWS = 1600  # with rationales; the rest is for reinforcement


def get_config(directory: str = DATA) -> configs.Config:
  """Returns the run on what `python -m rft_jax.tasks arithmetic --to=DIRECTORY` has made.

  Raises:
    ValueError: nothing has been made there yet, or too few rows.
  """
  made, warm_up = pathlib.Path(directory), f'{directory}/warm_up.jsonl'
  if not (made / 'base').is_dir() or not (made / 'train.jsonl').is_file():
    raise ValueError(
      f'{directory} holds no task yet: make base checkpoint and rows once, with '
      f'{MAKE} --to={directory}'
    )
  rows = (made / 'train.jsonl').read_text().splitlines(keepends=True)
  if len(rows) <= WARM_UP_ROWS:
    raise ValueError(
      f'{directory}/train.jsonl has {len(rows)} rows, need more than the '
      f'{WARM_UP_ROWS} of the warm-up: {MAKE} --to={directory}'
    )
  for name, part in (('warm_up', rows[:WARM_UP_ROWS]), ('answers', rows[WARM_UP_ROWS:])):
    (made / f'{name}.jsonl').write_text(''.join(part))
  return configs.Config(
    model=configs.ModelConfig(source=f'{directory}/base'),
    data=DataConfig(train=f'{directory}/answers.jsonl', validation=f'{directory}/validation.jsonl'),
    chat=ChatConfig(reasoning=('<think>', '</think>')),
    grader=f'{directory}/grader.json',
    stages=(
      configs.Stage(
        algorithm='sft',
        steps=800,
        data=warm_up,
        optim=OptimConfig(
          learning_rate=3e-3, schedule='cosine', warmup_steps=10, final_fraction=0.1
        ),
      ),
      configs.Stage(
        algorithm='grpo', steps=80, optim=OptimConfig(learning_rate=2e-4, warmup_steps=3)
      ),
    ),
    sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
    rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=8, max_new_tokens=40),
    objective=ObjectiveConfig(),
    evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
    checkpoints=configs.CheckpointConfig(every=200),
  )
