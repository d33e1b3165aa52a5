"""Real rare-disease cases: warm-up, then GRPO on the rank of the causal gene."""
import functools

from rft_jax.config import CheckpointConfig, Config, DataConfig, EvaluateConfig, ModelConfig, Stage
from rft_jax.algorithms.sft import SftConfig
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.optim import OptimConfig
from rft_jax.rollout import RolloutConfig

DATA = 'runs/rare_disease'  # what scripts/prepare_rare_disease.py wrote
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


def get_config(arm: str = 'rft') -> Config:
  """Returns the run of one arm: 'rft', or 'warm_up', the same budget without reinforcement."""
  optim = functools.partial(OptimConfig, b2=0.97, weight_decay=0.3)
  warm_up = Stage(algorithm='sft', steps=200, optim=optim(learning_rate=2e-3, warmup_steps=20))
  second = {
      'warm_up': Stage(algorithm='sft', steps=150,
                       optim=optim(learning_rate=2e-3, schedule='cosine')),
      'rft': Stage(algorithm='grpo', steps=150,
                   optim=optim(learning_rate=1e-3, schedule='cosine', warmup_steps=5)),
  }
  return Config(
      model=ModelConfig(source=f'{DATA}/base'),
      data=DataConfig(train=f'{DATA}/train.jsonl', validation=f'{DATA}/valid.jsonl'),
      grader=GRADER,
      stages=(warm_up, second[arm]),
      sft=SftConfig(target='{{ item.solution }}', rows_per_step=128),
      rollout=RolloutConfig(prompts_per_step=32, samples_per_prompt=9, max_new_tokens=14),
      advantage=AdvantageConfig(scale='none'),
      evaluate=EvaluateConfig(every=50, samples_per_prompt=4),
      checkpoints=CheckpointConfig(every=50))
