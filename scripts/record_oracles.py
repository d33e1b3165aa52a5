"""Records outputs of transformers for tiny checkpoints, so that the tests do not need torch.

    python scripts/record_oracles.py            # writes tests/recorded/<family>.npz, versions.json

Needs torch and transformers (the `oracles` extra); the tests need neither: they import `write`
from here, which writes the same checkpoints with NumPy alone. After a change of a rule here the
arrays must be recorded again.

Arrays of <family>.npz, all computed on CPU in float32 with eager attention, one row at a time:

    ids           i32[2, 12]      prompts, right-padded with 0
    lengths       i32[2]          12 and 9
    logits        f32[2, 12, V]   0 at padding
    logprobs      f32[2, 11]      nats: log p(ids[:, t+1] | ids[:, :t+1]); 0 at padding
    greedy        i32[2, 8]       the greedy continuation of each prompt, end of text ignored
    greedy_margin f32[2, 8]       the best logit minus the second one
"""

import datetime
import json
import pathlib
import sys
import tempfile
import zlib

import numpy as np
from safetensors.numpy import save_file

RECORDED = pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'recorded'
LENGTHS = (12, 9)
NEW_TOKENS = 8
SIZES = {
  'vocab_size': 80,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 128,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
# llama uses the field names of transformers 4 (rope_theta, rope_scaling, torch_dtype), the others
# those of 5. Its RoPE wavelengths 6, 20, 63 and 199 cover all three bands of the scaling:
# unchanged, interpolated, scaled.
FAMILIES = {
  'llama': SIZES
  | {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'head_dim': 8,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'mlp_bias': False,
    'torch_dtype': 'float32',
    'rope_theta': 100.0,
    'rope_scaling': {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
  },
  'qwen2': SIZES
  | {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'tie_word_embeddings': True,
    'dtype': 'float32',
    'use_sliding_window': False,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
  },
  'qwen3': SIZES
  | {
    'architectures': ['Qwen3ForCausalLM'],
    'model_type': 'qwen3',
    'head_dim': 16,
    'tie_word_embeddings': True,
    'attention_bias': False,
    'dtype': 'float32',
    'use_sliding_window': False,
    'rms_norm_eps': 1e-6,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 1000000.0},
  },
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every weight of a checkpoint with this config.json, by its name."""
  dim, mlp = config['hidden_size'], config['intermediate_size']
  head_dim = config.get('head_dim', dim // config['num_attention_heads'])
  queries = config['num_attention_heads'] * head_dim
  keys = config['num_key_value_heads'] * head_dim
  result = {'model.embed_tokens.weight': (config['vocab_size'], dim), 'model.norm.weight': (dim,)}
  if not config['tie_word_embeddings']:
    result['lm_head.weight'] = (config['vocab_size'], dim)
  for layer in range(config['num_hidden_layers']):
    prefix = f'model.layers.{layer}.'
    result |= {
      prefix + name: shape
      for name, shape in {
        'input_layernorm.weight': (dim,),
        'post_attention_layernorm.weight': (dim,),
        'self_attn.q_proj.weight': (queries, dim),
        'self_attn.k_proj.weight': (keys, dim),
        'self_attn.v_proj.weight': (keys, dim),
        'self_attn.o_proj.weight': (dim, queries),
        'mlp.gate_proj.weight': (mlp, dim),
        'mlp.up_proj.weight': (mlp, dim),
        'mlp.down_proj.weight': (dim, mlp),
      }.items()
    }
    if config['model_type'] == 'qwen2':
      result |= {
        f'{prefix}self_attn.{name}_proj.bias': (size,)
        for name, size in (('q', queries), ('k', keys), ('v', keys))
      }
    if config['model_type'] == 'qwen3':
      result |= {f'{prefix}self_attn.{name}_norm.weight': (head_dim,) for name in 'qk'}
  return result


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the f32 weight `name`; it depends on the name and shape alone.

  RandomState, because NumPy guarantees its stream across versions. Norms vary around 1, biases
  around 0, matrices have standard deviation 1.5 / sqrt(fan in): large enough that attention is
  far from uniform, so that an error in it changes the outputs.
  """
  weight = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
  if 'norm' in name:
    weight = 1 + 0.3 * weight
  elif name.endswith('bias'):
    weight = 0.5 * weight
  else:
    weight = weight * 1.5 / np.sqrt(shape[-1])
  return weight.astype(np.float32)


def write(family: str, directory: pathlib.Path, **changes) -> dict:
  """Writes the tiny checkpoint of a family into directory; returns its config.json.

  Args:
    changes: entries of config.json to replace.
  """
  config = FAMILIES[family] | changes
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(config, indent=2))
  weights = {name: values(name, shape) for name, shape in shapes(config).items()}
  save_file(weights, directory / 'model.safetensors', metadata={'format': 'pt'})
  return config


def prompts(config: dict) -> np.ndarray:
  """Returns i32[2, 12] ids above the special ones, 0 beyond LENGTHS."""
  shape = (len(LENGTHS), max(LENGTHS))
  ids = np.random.RandomState(7).randint(3, config['vocab_size'], shape).astype(np.int32)
  return np.where(np.arange(shape[1]) < np.array(LENGTHS)[:, None], ids, 0).astype(np.int32)


def record(family: str) -> dict[str, np.ndarray]:
  """Returns the arrays described above, computed by transformers."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as scratch:
    config = write(family, pathlib.Path(scratch))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
      scratch, dtype=torch.float32, attn_implementation='eager', output_loading_info=True
    )
  problems = {key: names for key, names in report.items() if names}
  if problems:
    raise ValueError(f'{family}: transformers did not load the checkpoint unchanged: {problems}')
  model.eval()
  ids = prompts(config)
  rows, width = ids.shape
  arrays = {
    'ids': ids,
    'lengths': np.array(LENGTHS, np.int32),
    'logits': np.zeros((rows, width, config['vocab_size']), np.float32),
    'logprobs': np.zeros((rows, width - 1), np.float32),
    'greedy': np.zeros((rows, NEW_TOKENS), np.int32),
    'greedy_margin': np.zeros((rows, NEW_TOKENS), np.float32),
  }
  model.generation_config.eos_token_id = None  # so that no row ends early
  for row, length in enumerate(LENGTHS):
    prompt = torch.tensor(ids[row, :length][None].astype(np.int64))
    with torch.no_grad():
      logits = model(prompt).logits[0]
      out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
      )
    logprobs = torch.log_softmax(logits[:-1].double(), -1).gather(-1, prompt[0, 1:, None])[:, 0]
    best = torch.stack(out.logits)[:, 0].topk(2).values
    arrays['logits'][row, :length] = logits.numpy()
    arrays['logprobs'][row, : length - 1] = logprobs.numpy()
    arrays['greedy'][row] = out.sequences[0, length:].numpy()
    arrays['greedy_margin'][row] = (best[:, 0] - best[:, 1]).numpy()
  return arrays


def main():
  import torch
  import transformers

  RECORDED.mkdir(exist_ok=True)
  for family in FAMILIES:
    arrays = record(family)
    np.savez_compressed(RECORDED / f'{family}.npz', **arrays)
    print(
      f'{family}: largest |logit| {np.abs(arrays["logits"]).max():.2f}, '
      f'smallest greedy margin {arrays["greedy_margin"].min():.4f}'
    )
  versions = {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'numpy': np.__version__,
    'python': sys.version.split()[0],
    'date': datetime.date.today().isoformat(),
    'made_by': 'scripts/record_oracles.py',
  }
  (RECORDED / 'versions.json').write_text(json.dumps(versions, indent=2) + '\n')


if __name__ == '__main__':
  main()
