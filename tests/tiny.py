"""A tiny training run for tests with real files, tokenizer, checkpoint and grader."""

import json

from rft_jax import config as configs
from rft_jax import hf, models
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.tasks import base_checkpoint
from rft_jax.training.optim import OptimConfig

GRADER = {
  'type': 'python',
  'name': 'closeness',
  'source': 'def grade(sample, item):\n'
  '  text = sample["output_text"]\n'
  '  return sum(c == item["answer"][0] for c in text) / (len(text) + 1)\n',
}


def rows(count=12):
  return [
    {
      'messages': [{'role': 'user', 'content': f'{n % 7} + {n % 5}'}],
      'answer': str(n % 7 + n % 5),
      'solution': f'<think>{n % 7}</think>{n % 7 + n % 5}',
    }
    for n in range(count)
  ]


def write_rows(path, items):
  path.write_text(''.join(json.dumps(item) + '\n' for item in items))
  return str(path)


def write_base(to, **changes):
  """Writes a random Llama with a byte-level tokenizer as an HF directory; returns its path."""
  tokenizer = base_checkpoint.make_tokenizer(['1 + 2', '<think>3</think>4'], vocabulary=272)
  settings = dict(
    vocab_size=288,
    dim=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    tied_head=True,
    max_positions=256,
    eos_ids=(tokenizer.eos_token_id,),
    pad_id=tokenizer.pad_token_id,
    valid_vocab=len(tokenizer),
  )
  config = models.DecoderConfig(**settings | changes)
  hf.save_base(models.make(config, seed=0), config, tokenizer, to)
  return str(to)


def config(directory, **changes):
  """Writes rows and checkpoint to directory; returns the Config of 3 SFT and 3 GRPO steps on them.

  Args:
    changes: fields of the Config; with `model` no checkpoint is written.
  """
  settings = dict(
    model=changes.get('model') or configs.ModelConfig(source=write_base(directory / 'base')),
    data=DataConfig(
      train=write_rows(directory / 'train.jsonl', rows()),
      validation=write_rows(
        directory / 'validation.jsonl',
        [
          dict(row, messages=[{'role': 'user', 'content': f'{n} + 0'}])
          for n, row in enumerate(rows(4))
        ],
      ),
    ),
    chat=ChatConfig(reasoning=None),
    grader=GRADER,
    stages=(
      configs.Stage(algorithm='sft', steps=3, optim=OptimConfig(learning_rate=1e-2)),
      configs.Stage(algorithm='grpo', steps=3, optim=OptimConfig(learning_rate=1e-2)),
    ),
    sft=configs.SftConfig(target='{{ item.solution }}', rows_per_step=8),
    rollout=RolloutConfig(
      prompts_per_step=8, samples_per_prompt=4, max_new_tokens=12, grade_truncated=True
    ),
    evaluate=configs.EvaluateConfig(every=2, samples_per_prompt=2),
    checkpoints=configs.CheckpointConfig(every=2),
  )
  return configs.Config(**settings | changes)
