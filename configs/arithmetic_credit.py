r"""Where credit goes: sums of three operations, by whole samples or by their lines.

  python -m rft_jax.tasks chains --to=runs/chains/data
  python -m rft_jax.main --config=configs/arithmetic_credit.py:warm_up \
    --workdir=runs/chains/warm_up
  python -m rft_jax.main --config=configs/arithmetic_credit.py:step_process \
    --workdir=runs/chains/step_process

The arms, each from the same warmed-up policy, on answers it has not been shown:

  warm_up         the lines of 2400 sums, shown (ReFT)
  response        GRPO on the final grade alone, without a division by its std
  step_process    each line graded by a function that tells whether it is right (chains.STEP_GRADER)
  step_prefix     the rise of that grade's sum from line to line; the last line is the final grade
  step_resample   VinePPO: two completions sampled from the end of each line are its value

Another folder than runs/chains: --config=configs/arithmetic_credit.py:response,FOLDER
"""
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.sft import SftConfig
from rft_jax.credit import CreditConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig
from rft_jax.tasks import chains

FOLDER = 'runs/chains'
MAKE = 'python -m rft_jax.tasks chains'
WARM_UP_ROWS = 2400  # with their lines; the rest is for reinforcement
# What stands there so far is worth its share of right lines.
PREFIX_GRADER = {
    'type': 'python',
    'name': 'right_lines',
    'source': chains.STEP_GRADER['source'].replace('def grade(', 'def of_line(') + '''

def grade(sample, item):
  lines, before, right = sample['output_text'].split('\\n'), [], 0.0
  for line in lines:
    right += of_line({'output_text': line},
                     {'messages': item['messages'], 'step': {'before': '\\n'.join(before)}})
    before.append(line)
  return right / (len(item['messages'][-1]['content'].split()) // 2)
''',
}
ARMS = {
    'warm_up': CreditConfig(),
    'response': CreditConfig(),
    'step_process': CreditConfig(level='step', steps='line', source='process',
                                 grader=chains.STEP_GRADER),
    'step_prefix': CreditConfig(level='step', steps='line', source='prefix',
                                grader=PREFIX_GRADER),
    'step_resample': CreditConfig(level='step', steps='line', source='resample', resamples=2),
}


def get_config(argument: str = 'response') -> configs.Config:
  """Returns the run of one arm, 'ARM' or 'ARM,FOLDER'.

  Raises:
    ValueError: no such arm, or what it begins with has not been made yet.
  """
  arm, _, folder = argument.partition(',')
  folder = folder or FOLDER
  if arm not in ARMS:
    raise ValueError(f'arm {arm!r}, need one of {", ".join(ARMS)}')
  data, warm_up = pathlib.Path(folder, 'data'), arm == 'warm_up'
  source = data / 'base' if warm_up else pathlib.Path(folder, 'warm_up', 'export')
  if not (data / 'train.jsonl').is_file():
    raise ValueError(f'{data} holds no task yet: {MAKE} --to={data}')
  if not source.is_dir():
    raise ValueError(f'{source} is not there yet: run --config=configs/arithmetic_credit.py:'
                     f'warm_up --workdir={folder}/warm_up')
  rows = (data / 'train.jsonl').read_text().splitlines(keepends=True)
  if len(rows) <= WARM_UP_ROWS:
    raise ValueError(f'{data}/train.jsonl has {len(rows)} rows, need more than the '
                     f'{WARM_UP_ROWS} of the warm-up: {MAKE} --to={data}')
  part = rows[:WARM_UP_ROWS] if warm_up else rows[WARM_UP_ROWS:]
  (data / ('shown.jsonl' if warm_up else 'answers.jsonl')).write_text(''.join(part))
  shown = configs.Stage(algorithm='sft', steps=800, optim=OptimConfig(
      learning_rate=3e-3, schedule='cosine', warmup_steps=10, final_fraction=0.1))
  reinforced = configs.Stage(algorithm='grpo', steps=60, optim=OptimConfig(
      learning_rate=2e-4, warmup_steps=3))
  return configs.Config(
      model=configs.ModelConfig(source=str(source)),
      data=DataConfig(train=str(data / ('shown.jsonl' if warm_up else 'answers.jsonl')),
                      validation=str(data / 'validation.jsonl')),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=str(data / 'grader.json'),
      stages=(shown if warm_up else reinforced,),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
      rollout=RolloutConfig(prompts_per_step=16, samples_per_prompt=8, max_new_tokens=64),
      advantage=AdvantageConfig(scale='none'),
      credit=ARMS[arm],
      evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
      checkpoints=configs.CheckpointConfig(every=200))
