"""The decoder: embedding, L equal blocks stacked and scanned, final norm, logits.

An flax.nnx Module used as a plain pytree: jax.jit, jax.grad and optax work on the instance, whose
leaves are float32 and named 'blocks/attention/q/kernel' and so on. The DecoderConfig determines
which leaves exist; families/ has their names in a checkpoint.

Rows are padded on the right, and lengths mark the padding. Values at padded positions are arbitrary
and finite, and do not affect the others.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rft_jax.models import rotary
from rft_jax.models.attention_rule import ATTENTION_OUTPUT, SharedPrefix
from rft_jax.models.blocks import INIT_STD, Block, RMSNorm
from rft_jax.models.config import DecoderConfig
from rft_jax.models.precision import precision_for


class Head(nnx.Module):
  """The kernel of the logits where it is not tied to the embedding; calling it returns that."""

  def __init__(self, config: DecoderConfig, *, rngs):
    shape = (config.dim, config.vocab_size)
    self.kernel = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape))

  def __call__(self):
    return self.kernel[...]


class Decoder(nnx.Module):
  """A causal language model. Leaves are float32, matrix products are in config.dtype.

  Leaves: embed [V, D]; blocks/... with a leading L; final_norm/scale [D]; head/kernel [D, V] unless
  config.tied_head.
  """

  def __init__(self, config: DecoderConfig, *, rngs):
    self.config = config
    self.embed = nnx.Param(
      INIT_STD * jax.random.normal(rngs.params(), (config.vocab_size, config.dim))
    )
    self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(
      jax.random.split(rngs.params(), config.layers)
    )
    self.final_norm = RMSNorm(config.dim, config.norm_epsilon)
    if not config.tied_head:
      self.head = Head(config, rngs=rngs)  # shadows the method below; both return [D, V]

  def __call__(self, tokens, *, lengths, remat='none'):
    """Returns the logits f32[B, T, V] of tokens i32[B, T] with lengths i32[B], right-padded."""
    return self.logits(self.hidden(tokens, lengths=lengths, remat=remat))

  def head(self):
    """Returns the kernel of the logits, f32[D, V]: the embedding's transpose where tied."""
    return self.embed[...].T

  def logits(self, hidden):
    """Final-normed hidden [..., D] -> logits f32[..., V], a float32 product on any hardware."""
    with jax.named_scope('logits'):
      return jnp.matmul(
        hidden.astype(jnp.float32), self.head(), precision=precision_for(jnp.float32)
      )

  def hidden(self, tokens, *, lengths, remat='none'):
    """Returns the final-normed hidden states [B, T, D], in the compute dtype.

    Args:
      tokens: i32[B, T], right-padded.
      lengths: i32[B], 0 to T.
      remat: a name in REMAT: what the backward pass recomputes instead of storing it.
    """
    del lengths  # padding is on the right, and a causal query attends only to what is before it
    rope = self.rope(jnp.arange(tokens.shape[1])[None])
    layer = lambda x, block: (block(x, rope)[0], None)
    x, _ = jax.lax.scan(REMAT[remat](layer), self.embeddings(tokens), self.blocks)
    return self.final_norm(x)

  def completion_hidden(
    self, prompts, prompt_lengths, completions, segment_starts=None, *, remat='none'
  ):
    """Returns hidden [B, T, D] where hidden[:, t] predicts completions[:, t].

    The prompt is computed once for the G rows that complete it. What they share is the prompt
    without its last token: each row's own inputs are that token and completions[:, :-1], at
    the positions n - 1, n, ... for a prompt of n tokens. So every hidden state is in the column
    of its target, and the first target is no special case.

    Args:
      prompts: i32[P, S], right-padded.
      prompt_lengths: i32[P], 1 to S (0, for a padding row, gives finite garbage).
      completions: i32[B, T], right-padded, B = P * G, row b completes prompt b // G.
      segment_starts: i32[B, T], where a row holds several completions of its prompt: for each
        token, the column in which its completion begins. None: each row is one completion, from
        column 0 on.
      remat: as in hidden.

    Raises:
      ValueError: B is not a multiple of P.
    """
    if completions.shape[0] % prompts.shape[0]:
      raise ValueError(
        f'{completions.shape[0]} completions of {prompts.shape[0]} prompts: need '
        'the same number for each, next to each other'
      )
    last, last_position = _last_token(prompts, prompt_lengths)
    group = completions.shape[0] // prompts.shape[0]
    repeat = lambda by_prompt: jnp.repeat(by_prompt, group)[:, None]
    columns = jnp.arange(completions.shape[1])
    offset = columns - (0 if segment_starts is None else segment_starts)
    tokens = jnp.where(offset == 0, repeat(last), jnp.roll(completions, 1, axis=1))
    rope = self.rope(repeat(last_position) + offset)
    prompt_rope = self.rope(jnp.arange(prompts.shape[1])[None])

    def layer(carry, block):
      prompt, x = carry
      prompt, (k, v) = block(prompt, prompt_rope)
      x, _ = block(x, rope, SharedPrefix(k, v, last_position), segment_starts)
      return (prompt, x), None

    carry = self.embeddings(prompts), self.embeddings(tokens)
    (_, x), _ = jax.lax.scan(REMAT[remat](layer), carry, self.blocks)
    return self.final_norm(x)

  # --- also used by decoding.py ---
  def embeddings(self, tokens):
    """Returns the embeddings of i32[...] tokens, [..., D], in the compute dtype."""
    # clip: an id out of range, in padding for example, must not become NaN
    return self.embed[...].at[tokens].get(mode='clip').astype(self.config.dtype)

  def rope(self, positions):
    """Returns the RoPE table of i32[B, T] positions, see rotary.rotate."""
    config = self.config
    frequencies = rotary.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    return rotary.table(positions, frequencies)


def _last_token(prompts, prompt_lengths):
  """Returns the last prompt token and its position, i32[P] each."""
  position = jnp.maximum(prompt_lengths - 1, 0)
  return jnp.take_along_axis(prompts, position[:, None], axis=1, mode='clip')[:, 0], position


# What of a layer is stored for the backward pass: everything; the results of its projections and of
# attention (all else is cheap to recompute); or its input alone.
REMAT = {
  'none': lambda layer: layer,
  # prevent_cse is not needed in the body of a scan, and would prevent fusions
  'dots': functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_from_both_policies(
      jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT),
    ),
  ),
  'full': functools.partial(jax.checkpoint, prevent_cse=False),
}


# --- initialisation -------------------------------------------------------------------------------
def init(config: DecoderConfig, key) -> Decoder:
  """Returns a newly initialised Decoder; for use under jit with out_shardings, or eval_shape."""
  return Decoder(config, rngs=nnx.Rngs(key))


def abstract(config: DecoderConfig) -> Decoder:
  """Returns a Decoder of ShapeDtypeStructs: names and shapes, without weights."""
  return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def make(config: DecoderConfig, seed: int) -> Decoder:
  """Returns a small model from scratch: normal weights of std 0.02, norms 1, biases 0.

  Raises:
    ValueError: config is not valid; all problems at once.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['decoder config:', *problems]))
  return _make(config, jax.random.key(seed))


_make = jax.jit(init, static_argnums=0)
