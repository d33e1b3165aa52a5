"""Sums with one product, such as 17 + 28 * 3: warm-up on short rationales, then GRPO.

NOTEBOOK
"""
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.grpo import GrpoConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

DATA = 'runs/arithmetic/data'
MAKE = ('python -m rft_jax.tasks arithmetic --largest_term=9 --largest_factor=9 '
        '--train_rows=1158')
WARM_UP_ROWS = 500


def get_config(directory: str = DATA) -> configs.Config:
  """Returns the run on what `python -m rft_jax.tasks arithmetic --to=DIRECTORY` has made.

  Raises:
    ValueError: nothing has been made there yet.
  """
  made, warm_up = pathlib.Path(directory), f'{directory}/warm_up.jsonl'
  if not (made / 'base').is_dir() or not (made / 'train.jsonl').is_file():
    raise ValueError(f'{directory} holds no task yet: make base checkpoint and rows with `{MAKE} '
                     f'--to={directory}`, once')
  rows = (made / 'train.jsonl').read_text().splitlines(keepends=True)
  for name, part in (('warm_up', rows[:WARM_UP_ROWS]), ('answers', rows[WARM_UP_ROWS:])):
    (made / f'{name}.jsonl').write_text(''.join(part))
  return configs.Config(
      model=configs.ModelConfig(source=f'{directory}/base'),
      data=DataConfig(train=f'{directory}/answers.jsonl',
                      validation=f'{directory}/validation.jsonl'),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=f'{directory}/grader.json',
      stages=(
          configs.Stage(algorithm='sft', steps=300, data=warm_up, optim=OptimConfig(
              learning_rate=3e-3, schedule='cosine', warmup_steps=10, final_fraction=0.1)),
          configs.Stage(algorithm='grpo', steps=140, optim=OptimConfig(
              learning_rate=2e-4, warmup_steps=3)),
      ),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=8, max_new_tokens=40),
      grpo=GrpoConfig(),
      evaluate=configs.EvaluateConfig(every=0, samples_per_prompt=4),
      checkpoints=configs.CheckpointConfig(every=200))
