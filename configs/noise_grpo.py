"""Training answers of which a share is wrong: plain GRPO beside robust settings, a cell of a grid.

  python scripts/bench_noise.py --to=runs/noise

makes the files, the one warmed-up model of each task, every cell of

  task (arithmetic, rare_disease) x share of wrong answers (0, 0.1, 0.2, 0.4) x arm x seed,

and a table and a picture from them. This file is one cell; by hand it is

  python scripts/bench_noise.py --to=runs/noise --prepare
  python -m rft_jax.main --config=configs/noise_grpo.py:arithmetic,0.2,robust,0 \\
      --workdir=runs/noise/arithmetic/0.2_robust_0

All cells of a task begin at the same warmed-up model, which has learnt from clean rationales of
other rows; what differs is the answers that reinforcement is graded with. Rows are few, so that
each is visited often: the case in which a wrong answer can be learnt by heart. Held-out answers
are never corrupted. Wrong numbers are off by 1, 2 or 10; a wrong gene is one that the textbook
lists for the case.

Arms:
  plain    GRPO, every row
  robust   GRPO; a row is left out while its samples agree on an answer that the grader calls wrong
  told     GRPO without the rows that are wrong: what perfect knowledge of them would give
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
    'arithmetic': dict(made=dict(largest_term=9, largest_factor=12, train_rows=1456),
                       warm_up_rows=1200, warm_up_steps=600),
    'rare_disease': dict(made=dict(train_rows=1756, validation_rows=300),
                         warm_up_rows=1500, warm_up_steps=360),
}
STEPS = {'arithmetic': 80, 'rare_disease': 100}
LEARNING_RATE = {'arithmetic': 3e-4, 'rare_disease': 1e-3}
# An answer given by three samples of four is sure enough to speak at once; the row is heard again
# at every visit, and nothing is learnt from it in between, so that what the policy says of it is
# not what it was taught by it.
ROBUST = {
    'arithmetic': RobustConfig(contradictions=1, min_share=0.75),
    'rare_disease': RobustConfig(contradictions=1, min_share=0.75,
                                 answer='{{ sample.output_json.genes[0] }}'),
}


def get_config(cell: str = 'arithmetic,0.2,robust,0', directory: str = HERE) -> Config:
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
      **_shared(place, str(rows)))


def rows_file(share: str, arm: str) -> str:
  """Returns the name of the rows that an arm learns from."""
  return f'answers_{share}{"_told" if arm == "told" else ""}.jsonl'


def _warm_up(task, place):
  return Config(
      model=ModelConfig(source=str(place / 'base')),
      stages=(Stage(algorithm='sft', steps=TASKS[task]['warm_up_steps'], optim=OptimConfig(
          learning_rate=3e-3, warmup_steps=10, schedule='cosine', final_fraction=0.1)),),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
      **_shared(place, str(place / 'warm_up.jsonl')))


def _shared(place, rows):
  return dict(
      data=DataConfig(train=rows, validation=str(place / 'validation.jsonl')),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=str(place / 'grader.json'),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=8, max_new_tokens=40),
      evaluate=EvaluateConfig(every=0, samples_per_prompt=4),
      checkpoints=CheckpointConfig(every=0, keep_best=1))
