"""Hugging Face directories in and out: load, export, and save_base for models from scratch."""
from rft_jax.hf.export import export
from rft_jax.hf.export import save_base
from rft_jax.hf.load import load
from rft_jax.hf.load import read_config
from rft_jax.hf.load import resolve

__all__ = ['export', 'load', 'read_config', 'resolve', 'save_base']
