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
  robust   GRPO; a row is left out while its samples agree on an answer that the grader calls wrong
  told     GRPO without the rows that are wrong: what perfect knowledge of them would give

Tried with 40 % wrong answers and one seed; held-out grade of samples, 95 % intervals over rows:

  arithmetic, 60 steps    warmed up 0.494  plain 0.361 [0.318, 0.407]  robust 0.402 [0.354, 0.448]
  rare disease, 100 steps warmed up 0.408  plain 0.542 [0.509, 0.579]

In arithmetic 119 rows of 256 were left out at the end, 82 of them wrong, of 103 that were.

What did not work: leaving a rare-disease case out after one visit at which three samples of four
named a gene first that was not the reference. 0.355 [0.318, 0.396], below the start: 142 rows
were left out and 72 of them were wrong, little more than by chance. It seems that a policy often
sure and wrong confirms itself once what contradicts it is left out. In the samples of the plain
run, of the rows contradicted at one visit within 16 steps 44 of 69 were wrong, of those at two in
a row 11 of 14. What it does instead, see ROBUST, has not been run yet.
"""
import pathlib

from rft_jax.algorithms.robust import RobustConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.config import Config, EvaluateConfig, ModelConfig, Stage
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.optim import OptimConfig
from rft_jax.records.checkpoint import CheckpointConfig
from rft_jax.rollout import RolloutConfig

HERE = 'runs/noise'
SHARES = (0.0, 0.1, 0.2, 0.4)
ARMS = ('plain', 'robust', 'told')
# How the rows are made, how many of them warm the model up, and for how many steps.
TASKS = {
    'chains': dict(made=dict(largest_term=5, train_rows=2912), warm_up_rows=2400,
                   warm_up_steps=300),
    'rare_disease': dict(made=dict(train_rows=1756, validation_rows=300),
                         warm_up_rows=1500, warm_up_steps=360),
}
STEPS = {'chains': 60, 'rare_disease': 90}
LEARNING_RATE = {'chains': 2e-4, 'rare_disease': 1e-3}
SAMPLING = {'chains': dict(prompts_per_step=64, max_new_tokens=64),
            'rare_disease': dict(prompts_per_step=32, max_new_tokens=40)}
# A sum has one right number, and three samples of four that agree speak at once. The gene of a case
# is uncertain by nature: there nine of ten must agree, twice, on a gene whose list is graded low.
ROBUST = {
    'chains': RobustConfig(contradictions=1, min_share=0.75),
    'rare_disease': RobustConfig(contradictions=2, min_share=0.9, right_from=0.5,
                                 answer='{{ sample.output_json.genes[0] }}'),
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
  if (task not in TASKS or share not in map(str, SHARES) or arm not in ARMS or
      not seed.isdecimal()):
    raise ValueError(f'{cell!r}, need TASK,SHARE,ARM,SEED of {tuple(TASKS)}, {SHARES}, {ARMS} and '
                     'a number, or TASK,warm_up')
  place = pathlib.Path(directory) / task
  rows = place / rows_file(share, arm)
  if not rows.is_file() or not (place / 'warm_up' / 'export' / 'config.json').is_file():
    raise ValueError(f'{place} lacks {rows.name} or the warmed-up model: '
                     f'python scripts/bench_noise.py --to={directory} --prepare')
  return Config(
      seed=int(seed),
      model=ModelConfig(source=str(place / 'warm_up' / 'export')),
      stages=(Stage(algorithm='grpo', steps=STEPS[task], optim=OptimConfig(
          learning_rate=LEARNING_RATE[task], warmup_steps=3)),),
      robust=ROBUST[task] if arm == 'robust' else RobustConfig(),
      **_shared(task, place, str(rows)))


def rows_file(share: str, arm: str) -> str:
  """Returns the name of the rows that an arm learns from."""
  return f'answers_{share}{"_told" if arm == "told" else ""}.jsonl'


def _warm_up(task, place):
  return Config(
      model=ModelConfig(source=str(place / 'base')),
      stages=(Stage(algorithm='sft', steps=TASKS[task]['warm_up_steps'], optim=OptimConfig(
          learning_rate=3e-3, warmup_steps=10, schedule='cosine', final_fraction=0.1)),),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
      **_shared(task, place, str(place / 'warm_up.jsonl')))


def _shared(task, place, rows):
  return dict(
      data=DataConfig(train=rows, validation=str(place / 'validation.jsonl')),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=str(place / 'grader.json'),
      rollout=RolloutConfig(samples_per_prompt=8, **SAMPLING[task]),
      evaluate=EvaluateConfig(every=0, samples_per_prompt=4),
      checkpoints=CheckpointConfig(every=0, keep_best=1))
