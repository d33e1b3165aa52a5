"""Value heads: one number for each token instead of logits, for PPO's critic and reward models.

The leaf is named as Hugging Face names it in a model for sequence classification with one label:
'score/kernel' [D, 1], without a bias. It starts at 0, so that an untrained head gives 0 everywhere.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rft_jax.models.decoder import Decoder
from rft_jax.models.precision import precision_for

CRITIC_KINDS = ('separate', 'head')


class Score(nnx.Module):
  """The linear map from hidden states to a number, in float32."""

  def __init__(self, dim):
    self.kernel = nnx.Param(jnp.zeros((dim, 1)))

  def __call__(self, hidden):
    return jnp.matmul(
      hidden.astype(jnp.float32), self.kernel[...], precision=precision_for(jnp.float32)
    )[..., 0]


class Critic(nnx.Module):
  """A linear head on the hidden states of a decoder: the critic's own, or the policy's.

  Leaves: score/kernel [D, 1]; decoder/... where the critic has its own.
  """

  def __init__(self, dim: int, decoder: Decoder | None = None):
    self.decoder = decoder
    self.score = Score(dim)

  def hidden(self, policy_hidden, *inputs, **settings):
    """Returns the hidden states that the head is applied to, [B, T, D].

    Those of the critic's own decoder if it has one, otherwise policy_hidden.

    Args:
      policy_hidden: [B, T, D] of the same tokens.
      inputs, settings: of Decoder.completion_hidden.
    """
    if self.decoder is None:
      return policy_hidden
    return self.decoder.completion_hidden(*inputs, **settings)

  def __call__(self, hidden):
    """Returns f32[B, T] of hidden [B, T, D]."""
    with jax.named_scope('score'):
      return self.score(hidden)


def make_critic(policy: Decoder, kind: str) -> Critic:
  """Returns a critic whose values are all 0.

  Args:
    kind: 'separate' (with a decoder that is a copy of the policy's), or 'head' (on the policy's).
  """
  decoder = jax.tree.map(jnp.copy, policy) if kind == 'separate' else None
  return Critic(policy.config.dim, decoder)
