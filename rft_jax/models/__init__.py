"""Decoders: one architecture, a small table per model family, weights as a plain pytree."""
from rft_jax.models.config import DecoderConfig
from rft_jax.models.config import Llama3Rope
from rft_jax.models.config import WeightRule
from rft_jax.models.decoder import abstract
from rft_jax.models.decoder import Decoder
from rft_jax.models.decoder import init
from rft_jax.models.decoder import make
from rft_jax.models.decoder import REMAT
from rft_jax.models.families import FAMILIES
from rft_jax.models.families import family_of
from rft_jax.models.heads import Critic
from rft_jax.models.heads import CRITIC_KINDS
from rft_jax.models.heads import make_critic
