"""Training answers of which a share is wrong: plain GRPO beside robust settings, a cell of a grid.

  python scripts/bench_noise.py --to=runs/noise

makes the files, the one warmed-up model of each task, every cell of

  task (chains, rare_disease) x share of wrong answers (0, 0.1, 0.2, 0.4) x arm x seed,

and a table and a picture from them. This file is one cell; by hand it is

  python scripts/bench_noise.py --to=runs/noise --prepare
  python -m rft_jax.main --config=configs/noise_grpo.py:chains,0.2,robust,0 \\
      --workdir=runs/noise/chains/0.2_robust_0

All cells of a task begin at the same warmed-up model, which has learnt from clean rationales of
other rows; what differs is the answers that reinforcement is graded with. Rows are few, so that
each is visited often: the case in which a wrong answer can be learnt by heart. Held-out answers
are never corrupted. Wrong numbers are off by 1, 2 or 10; a wrong gene is one that the textbook
lists for the case.

Arms:
  plain    GRPO, every row
  robust   chains: noisy_grades.min_plausibility=0.3, which leaves a group out of its step where a lone
           sample is graded right and four or more agree on something else (where none is right
           there is nothing to learn from); rare disease: advantage.scale='none', advantages are
           not divided by the std of their group
  told     GRPO without the rows that are wrong: what perfect knowledge of them would give

Held-out grade of samples after 60 steps (chains) and 90, seeds 0, 1, 2, with 95 % intervals over
seeds and rows; robust and told less plain, paired by seed and row:

  wrong                    plain                 robust - plain           told - plain
  chains, warmed up: 0.352
    0 of 512               0.413 [0.366, 0.458]  -0.011 [-0.030, +0.008]
    39 (--corrupt=0.1)     0.393 [0.344, 0.441]  -0.008 [-0.029, +0.014]  +0.014 [-0.017, +0.045]
    86 (0.2)               0.381 [0.335, 0.427]  -0.003 [-0.019, +0.014]  +0.031 [+0.006, +0.056]
    188 (0.4)              0.351 [0.305, 0.396]  +0.014 [-0.006, +0.036]  +0.043 [+0.018, +0.069]
  rare disease, warmed up: 0.402
    0 of 256               0.617 [0.571, 0.663]  -0.012 [-0.061, +0.035]
    28 (0.1)               0.583 [0.542, 0.623]  +0.009 [-0.037, +0.052]  +0.024 [-0.012, +0.059]
    44 (0.2)               0.584 [0.540, 0.630]  +0.010 [-0.028, +0.049]  +0.010 [-0.039, +0.062]
    103 (0.4)              0.511 [0.471, 0.551]  +0.041 [+0.009, +0.071]  +0.069 [+0.027, +0.114]

noise_grpo.png draws it. Hardware and time: two shared cores, two cells at a time, 60 to 130 s each.

So --corrupt=0.4 takes all that chains had gained, and half of it in rare disease. The robust
settings give some of that back there (0.04 of the 0.07 that knowing the wrong rows gives), where
the noise is large, and nothing that could be told from chance where it is 20 % or less; without
noise they seem to cost 0.01. In chains nothing helped for sure.

These settings were chosen among several at 40 % and seed 0 (rare disease: seed 1 too) on the
same held-out rows, so the last lines flatter them a little. What else was tried there, less plain:

                                         chains                   rare disease
  contradictions=1, min_share=0.75       -0.007 [-0.027, +0.012]
  contradictions=2, min_share=0.9                                 -0.028 [-0.067, +0.011]
  min_plausibility=0.3                   (kept)                   -0.098 [-0.146, -0.049]
  clip, grade_low=0.9                                             -0.066 [-0.108, -0.022]
  min_plausibility=0.3 and clip                                   -0.007 [-0.050, +0.037]
  scale='none'                           -0.019 [-0.039, -0.000]  (kept)
  scale='none', contradictions           -0.025 [-0.048, -0.003]
  scale='none', rate 5e-4                                         +0.020 [-0.019, +0.061]
  scale='none' and clip                                           -0.085 [-0.131, -0.039]

Why leaving out is worth so little: a wrong sum has little signal to begin with. Hardly a sample
hits the wrong number, all advantages are 0, and of the groups of the plain run that have signal
21 % are wrong where 37 % of the rows are; min_plausibility=0.3 makes them 19 %. And a hard case
looks like a wrong one: of the rare-disease groups it leaves out 48 % are right, and it is they that
could have taught the policy something. There it helps not to divide by the std of the group, which
makes the little that nearly equal samples differ by as loud as any other difference.

On an arithmetic task with 256 rows, learnt by heart at 3e-4, even `told` ended below the start
(0.376 after 0.443): too few rows for reinforcement, and nothing to be said about noise.
"""

import pathlib

from rft_jax.algorithms.noisy_grades import NoisyGradesConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.config import Config, EvaluateConfig, ModelConfig, Stage
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.records.checkpoint import CheckpointConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

HERE = 'runs/noise'
SHARES = (0.0, 0.1, 0.2, 0.4)
ARMS = ('plain', 'robust', 'told')
# How the rows are made, how many of them warm the model up, and for how many steps.
TASKS = {
  'chains': dict(made=dict(largest_term=5, train_rows=2912), warm_up_rows=2400, warm_up_steps=300),
  'rare_disease': dict(
    made=dict(train_rows=1756, validation_rows=300), warm_up_rows=1500, warm_up_steps=360
  ),
}
STEPS = {'chains': 60, 'rare_disease': 90}
LEARNING_RATE = {'chains': 2e-4, 'rare_disease': 1e-3}
SAMPLING = {
  'chains': dict(prompts_per_step=64, max_new_tokens=64),
  'rare_disease': dict(prompts_per_step=32, max_new_tokens=40),
}
# The best of what the docstring says was tried.
ROBUST = {
  'chains': dict(noisy_grades=NoisyGradesConfig(min_plausibility=0.3)),
  'rare_disease': dict(advantage=AdvantageConfig(scale='none')),
}


def get_config(cell: str = 'chains,0.2,robust,0', directory: str = HERE) -> Config:
  """Returns one cell, 'TASK,SHARE,ARM,SEED', or with 'TASK,warm_up' what they all begin with.

  Raises:
    ValueError: no such cell, or its files have not been made.
  """
  task, *rest = cell.split(',')
  if task in TASKS and rest == ['warm_up']:
    return _warm_up(task, pathlib.Path(directory) / task)
  share, arm, seed = rest if len(rest) == 3 else ('', '', '')
  if task not in TASKS or share not in map(str, SHARES) or arm not in ARMS or not seed.isdecimal():
    raise ValueError(
      f'{cell!r}, need TASK,SHARE,ARM,SEED of {tuple(TASKS)}, {SHARES}, {ARMS} and '
      'a number, or TASK,warm_up'
    )
  place = pathlib.Path(directory) / task
  rows = place / rows_file(share, arm)
  if not rows.is_file() or not (place / 'warm_up' / 'export' / 'config.json').is_file():
    raise ValueError(
      f'{place} lacks {rows.name} or the warmed-up model: '
      f'python scripts/bench_noise.py --to={directory} --prepare'
    )
  return Config(
    seed=int(seed),
    model=ModelConfig(source=str(place / 'warm_up' / 'export')),
    stages=(
      Stage(
        algorithm='grpo',
        steps=STEPS[task],
        optim=OptimConfig(learning_rate=LEARNING_RATE[task], warmup_steps=3),
      ),
    ),
    **(ROBUST[task] if arm == 'robust' else {}),
    **_shared(task, place, str(rows)),
  )


def rows_file(share: str, arm: str) -> str:
  """Returns the name of the rows that an arm learns from."""
  return f'answers_{share}{"_told" if arm == "told" else ""}.jsonl'


def _warm_up(task, place):
  return Config(
    model=ModelConfig(source=str(place / 'base')),
    stages=(
      Stage(
        algorithm='sft',
        steps=TASKS[task]['warm_up_steps'],
        optim=OptimConfig(
          learning_rate=3e-3, warmup_steps=10, schedule='cosine', final_fraction=0.1
        ),
      ),
    ),
    sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
    **_shared(task, place, str(place / 'warm_up.jsonl')),
  )


def _shared(task, place, rows):
  return dict(
    data=DataConfig(train=rows, validation=str(place / 'validation.jsonl')),
    chat=ChatConfig(reasoning=('<think>', '</think>')),
    grader=str(place / 'grader.json'),
    rollout=RolloutConfig(samples_per_prompt=8, **SAMPLING[task]),
    evaluate=EvaluateConfig(every=0, samples_per_prompt=4),
    checkpoints=CheckpointConfig(every=0, keep_best=1),
  )
