"""Decoders: one architecture, a small module per model family, weights as a plain pytree."""

from rft_jax.models.config import DecoderConfig, Llama3Rope
from rft_jax.models.decoder import REMAT, Decoder, abstract, init, make
from rft_jax.models.families import FAMILIES, family_of
from rft_jax.models.families.base import WeightRule
from rft_jax.models.heads import CRITIC_KINDS, Critic, make_critic
