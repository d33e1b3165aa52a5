"""rft_jax: reinforcement fine-tuning on JAX, with weights that stay yours.

The public names below load on first use; `import rft_jax` itself imports nothing heavy.
"""

import importlib
import os

__version__ = '0.2.0'

# Only tokenizers and chat templates of transformers are used: no advice to install torch.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

_HOMES = {
  'load': 'rft_jax.hf.load',
  'export': 'rft_jax.hf.export',
  'score': 'rft_jax.training.scoring',
  'generate': 'rft_jax.sampling.engine',
  'grade': 'rft_jax.graders',
  'train': 'rft_jax.run.train',
  'evaluate': 'rft_jax.run.evaluate',
}

__all__ = ['__version__', *_HOMES]


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f'module rft_jax has no attribute {name!r}; it has {sorted(_HOMES)}')
  value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
  return value


def __dir__():
  return sorted(__all__)
