"""Hugging Face directories in and out: load, export, and save_base for models from scratch."""

from rft_jax.hf.config import read_config
from rft_jax.hf.export import export, save_base
from rft_jax.hf.hub import resolve
from rft_jax.hf.load import load
from rft_jax.hf.reward_model import (
  abstract_reward_model,
  export_reward_model,
  load_reward_model,
  reward_model_problems,
)

__all__ = [
  'abstract_reward_model',
  'export',
  'export_reward_model',
  'load',
  'load_reward_model',
  'read_config',
  'resolve',
  'reward_model_problems',
  'save_base',
]
