"""Rare-disease cases from a simulator: a warm-up on rationales, then reinforcement on grades.

NOTEBOOK
"""
from rft_jax.algorithms.sft import SftConfig
from rft_jax.config import Config, EvaluateConfig, ModelConfig, Stage
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.optim import OptimConfig
from rft_jax.records.checkpoint import CheckpointConfig
from rft_jax.records.report import ReportConfig
from rft_jax.rollout import RolloutConfig
from rft_jax.update import UpdateConfig

DEMO = 'runs/rare_disease_demo'  # `make demo` writes its cases to data/ in it


def get_config(arm: str = 'reinforced') -> Config:
  """Returns the run of one arm.

  Args:
    arm: 'reinforced', or 'continued': the same warm-up going on for at least as many tokens.
  """
  warm_up = Stage(algorithm='sft', steps=360, optim=OptimConfig(
      learning_rate=3e-3, warmup_steps=20, schedule='cosine', final_fraction=0.3,
      weight_decay=0.01))
  second = {
      'reinforced': Stage(algorithm='grpo', steps=120, optim=OptimConfig(
          learning_rate=1.5e-3, warmup_steps=5, schedule='cosine', final_fraction=0.1, b2=0.99)),
      'continued': Stage(algorithm='sft', steps=560, optim=OptimConfig(
          learning_rate=1.5e-3, schedule='cosine', final_fraction=0.1, weight_decay=0.01)),
  }
  return Config(
      model=ModelConfig(source=f'{DEMO}/data/base'),
      data=DataConfig(train=f'{DEMO}/data/train.jsonl',
                      validation=f'{DEMO}/data/validation.jsonl'),
      chat=ChatConfig(reasoning=('<think>', '</think>')),
      grader=f'{DEMO}/data/grader.json',
      stages=(warm_up, second[arm]),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=32),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=8, max_new_tokens=40),
      update=UpdateConfig(remat=True),
      evaluate=EvaluateConfig(every=0 if arm == 'continued' else 60, samples_per_prompt=4),
      checkpoints=CheckpointConfig(every=0),
      report=ReportConfig(
          compare=(f'Warm-up continued for the same tokens={DEMO}/continued',),
          reference=f'{DEMO}/data/task.json:bayes_optimal'))
