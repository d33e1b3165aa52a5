"""Real rare-disease cases: rank the causal gene. Warm-up alone against warm-up, then GRPO.

NOTEBOOK
"""
import dataclasses
import functools
import pathlib

from rft_jax import config as configs
from rft_jax.algorithms.grpo import GrpoConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.config import CheckpointConfig, EvaluateConfig, Stage
from rft_jax.data.rows import DataConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

DATA = 'runs/rare_disease'
WHERE_FROM = (
    f'need what scripts/prepare_rare_disease.py writes to {DATA}: clone the public repository '
    'monarch-initiative/phenopacket-store, run scripts/fetch_rare_disease.py CLONE --to=CASES, '
    f'then scripts/prepare_rare_disease.py CASES --to={DATA}; for another directory override '
    'config.model.source, config.data.train, config.data.validation and config.stages[1].data')

GRADER_SOURCE = '''\
import json


def grade(sample, item):
  """0.7 ** (rank - 1) of the causal gene among the first 10, 0 if it is not there."""
  answer = json.loads(sample["output_text"])
  if not isinstance(answer["explanation"], str):
    raise TypeError("explanation is not a string")
  genes = list(dict.fromkeys(gene.strip().upper() for gene in answer["genes"]))[:10]
  return 0.7 ** genes.index(item["gene"]) if item["gene"] in genes else 0.0
'''
GRADER = {'type': 'python', 'name': 'gene_rank', 'source': GRADER_SOURCE}


@dataclasses.dataclass(slots=True, kw_only=True)
class PreparedModel(configs.ModelConfig):
  """A checkpoint that is made together with the rows, and tells how."""

  def validate(self) -> list[str]:
    if not (pathlib.Path(self.source) / 'config.json').is_file():
      return [f'source={self.source!r}, {WHERE_FROM}']
    return configs.ModelConfig.validate(self)


def get_config(arm: str = 'rft') -> configs.Config:
  """Returns the run of one arm, which all begin with the same warm-up.

  Args:
    arm: 'rft'; 'warm_up', the same number of tokens and steps without reinforcement; or
      'warm_up_few', the same on the rows that reinforcement sees.
  """
  optim = functools.partial(OptimConfig, learning_rate=2e-3, b2=0.97, weight_decay=0.3)
  few = f'{DATA}/train_few.jsonl'
  arms = {
      'rft': Stage(algorithm='grpo', steps=300, data=few,
                   optim=OptimConfig(learning_rate=6e-4, warmup_steps=5, schedule='cosine',
                                     final_fraction=0.1, b2=0.99)),
      'warm_up': Stage(algorithm='sft', steps=300, optim=optim(schedule='cosine')),
      'warm_up_few': Stage(algorithm='sft', steps=300, data=few, optim=optim(schedule='cosine')),
  }
  if arm not in arms:
    raise ValueError(f'arm {arm!r}, need one of {tuple(arms)}: --config=FILE.py:ARM')
  return configs.Config(
      model=PreparedModel(source=f'{DATA}/base'),
      data=DataConfig(train=f'{DATA}/train.jsonl', validation=f'{DATA}/valid.jsonl'),
      grader=GRADER,
      stages=(Stage(algorithm='sft', steps=200, optim=optim(warmup_steps=20)), arms[arm]),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=128),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=9, max_new_tokens=14),
      advantage=AdvantageConfig(scale='none'),
      grpo=GrpoConfig(kl_coef=0.05),
      evaluate=EvaluateConfig(every=50, samples_per_prompt=4),
      checkpoints=CheckpointConfig(every=50))
