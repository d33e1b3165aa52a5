"""The decoder: embedding, L equal blocks stacked and scanned, final norm, logits.

An flax.nnx Module used as a plain pytree: jax.jit, jax.grad and optax work on the instance, whose
leaves are float32 and named 'blocks/attention/q/kernel' and so on. Which leaves exist stands in the
DecoderConfig; families/ says where a checkpoint keeps them.

Padding is on the right and told by lengths. What stands at padded positions is arbitrary, finite,
and does not reach the others.
"""
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from rft_jax.models import attention
from rft_jax.models.blocks import Block
from rft_jax.models.blocks import INIT_STD
from rft_jax.models.blocks import RMSNorm
from rft_jax.models.config import DecoderConfig


class Prefix(NamedTuple):
  """Keys and values of the prompts without their last token, in the compute dtype.

  Columns from prompt_lengths - 1 on are garbage, and masked by whoever attends.
  """
  k: jax.Array  # [L, P, S, K, H]
  v: jax.Array  # [L, P, S, K, H]


class Cache(NamedTuple):
  """Keys and values of the completions so far, in the compute dtype.

  The order is Prefix's, and that in which keys are projected, so that a step writes without a
  transposition. Measured on a CPU (attention alone, 3 layers, B = 256, T = 64, K = 2, H = 32): this
  order 2.5 to 3.2 ms a step, [L, B, K, T, H] 2.6 to 3.0, T before B twice as slow.
  """
  k: jax.Array  # [L, B, T, K, H]
  v: jax.Array  # [L, B, T, K, H]


# --- the head ------------------------------------------------------------------------------------
class Head(nnx.Module):
  """The kernel of the logits where it is not the embedding; calling it returns it."""

  def __init__(self, config: DecoderConfig, *, rngs):
    shape = (config.dim, config.vocab_size)
    self.kernel = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape))

  def __call__(self):
    return self.kernel[...]


# --- the whole -----------------------------------------------------------------------------------
class Decoder(nnx.Module):
  """A causal language model. Leaves are float32, matrix products are in config.dtype.

  Leaves: embed [V, D]; blocks/... with a leading L; final_norm/scale [D]; head/kernel [D, V] unless
  config.tied_head.
  """

  def __init__(self, config: DecoderConfig, *, rngs):
    self.config = config
    self.embed = nnx.Param(INIT_STD *
                           jax.random.normal(rngs.params(), (config.vocab_size, config.dim)))
    self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(jax.random.split(
        rngs.params(), config.layers))
    self.final_norm = RMSNorm(config.dim, config.norm_epsilon)
    if not config.tied_head:
      self.head = Head(config, rngs=rngs)  # stands before the method below; both return [D, V]

  def __call__(self, tokens, *, lengths, remat=False):
    """Returns the logits f32[B, T, V] of tokens i32[B, T] with lengths i32[B], right-padded."""
    return self.logits(self.hidden(tokens, lengths=lengths, remat=remat))

  def head(self):
    """Returns the kernel of the logits, f32[D, V]: the embedding's transpose where tied."""
    return self.embed[...].T

  def logits(self, hidden):
    """Final-normed hidden [..., D] -> logits f32[..., V], a float32 product on any hardware."""
    with jax.named_scope('logits'):
      return jnp.matmul(hidden.astype(jnp.float32),
                        self.head(),
                        precision=attention.precision_for(jnp.float32))

  def hidden(self, tokens, *, lengths, remat=False):
    """Returns the final-normed hidden states [B, T, D], in the compute dtype.

    Args:
      tokens: i32[B, T], right-padded.
      lengths: i32[B], 0 to T.
      remat: compute each layer again in the backward pass instead of keeping what it needs.
    """
    rope = self._rope(jnp.arange(tokens.shape[1])[None])
    mask = attention.causal_mask(tokens.shape[1], lengths)
    layer = lambda x, block: (block(x, rope, mask)[0], None)
    x, _ = jax.lax.scan(_rematerialised(layer, remat), self._embed(tokens), self.blocks)
    return self.final_norm(x)

  def completion_hidden(self, prompts, prompt_lengths, completions, *, remat=False):
    """Returns hidden [B, T, D] where hidden[:, t] predicts completions[:, t].

    The prompt is computed once for the G rows that complete it. What they share is the prompt
    without its last token: each row's own inputs are that token and completions[:, :-1], at
    the positions n - 1, n, ... for a prompt of n tokens. So every hidden state stands at its
    target, and the first target needs no case of its own.

    Args:
      prompts: i32[P, S], right-padded.
      prompt_lengths: i32[P], 1 to S (0, for a padding row, gives finite garbage).
      completions: i32[B, T], right-padded, B = P * G, row b completes prompt b // G.
      remat: as in hidden.

    Raises:
      ValueError: B is not a multiple of P.
    """
    if completions.shape[0] % prompts.shape[0]:
      raise ValueError(f'{completions.shape[0]} completions of {prompts.shape[0]} prompts: need '
                       'the same number for each, next to each other')
    last, start = _last_token(prompts, prompt_lengths)
    group = completions.shape[0] // prompts.shape[0]
    first = jnp.repeat(last, group)[:, None]
    tokens = jnp.concatenate([first, completions[:, :-1]], axis=1)
    positions = jnp.repeat(start, group)[:, None] + jnp.arange(tokens.shape[1])
    prompt_rope, prompt_mask = self._prompt_side(prompts, prompt_lengths)
    rope, mask = self._rope(positions), attention.causal_mask(tokens.shape[1])

    def layer(carry, block):
      prompt, x = carry
      prompt, (k, v) = block(prompt, prompt_rope, prompt_mask)
      x, _ = block(x, rope, mask, attention.SharedPrefix(k, v, start))
      return (prompt, x), None

    carry = self._embed(prompts), self._embed(tokens)
    (_, x), _ = jax.lax.scan(_rematerialised(layer, remat), carry, self.blocks)
    return self.final_norm(x)

  # --- sampling: the same numbers as completion_hidden, a token at a time ---
  def prefill(self, prompts, prompt_lengths) -> Prefix:
    """Returns the keys and values of prompts i32[P, S] without their last token."""
    rope, mask = self._prompt_side(prompts, prompt_lengths)
    layer = lambda x, block: block(x, rope, mask)
    _, (k, v) = jax.lax.scan(layer, self._embed(prompts), self.blocks)
    return Prefix(k, v)

  def decode(self, tokens, t, prefix, prompt_lengths, cache):
    """Reads one token of each row; returns (final-normed hidden [B, D], cache).

    Args:
      tokens: i32[B], for t = 0 the last prompt tokens, then the completions' tokens t - 1.
      t: i32[], which one it is: it stands at position prompt_lengths - 1 + t and is
        written at index t of the cache. Beyond the cache's T it would overwrite the last: check on
        the host.
      prefix: of prefill. P rows, B = P * G.
      prompt_lengths: i32[P].
      cache: of empty_cache or the decode before; donate it, or a second one is allocated.
    """
    start = jnp.maximum(prompt_lengths - 1, 0)
    group = tokens.shape[0] // start.shape[0]
    rope = self._rope((jnp.repeat(start, group) + t)[:, None])
    mask = (jnp.arange(cache.k.shape[2]) <= t)[None, None]

    def layer(carry, xs):  # the cache is carried: scanned as xs and ys it is allocated twice
      x, cache_k, cache_v = carry
      block, index, prefix_k, prefix_v = xs
      q, k, v = block.qkv(x, rope)
      cache_k = jax.lax.dynamic_update_slice(cache_k, k[None], (index, 0, t, 0, 0))
      cache_v = jax.lax.dynamic_update_slice(cache_v, v[None], (index, 0, t, 0, 0))
      shared = attention.SharedPrefix(prefix_k, prefix_v, start)
      x = block.finish(x, attention.attend(q, cache_k[index], cache_v[index], mask, shared))
      return (x, cache_k, cache_v), None

    carry = self._embed(tokens[:, None]), cache.k, cache.v
    xs = self.blocks, jnp.arange(self.config.layers), prefix.k, prefix.v
    (x, k, v), _ = jax.lax.scan(layer, carry, xs)
    return self.final_norm(x)[:, 0], Cache(k, v)

  def empty_cache(self, batch: int, length: int) -> Cache:
    """Returns a cache of zeros for B = batch rows of T = length tokens."""
    config = self.config
    shape = (config.layers, batch, length, config.kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

  def for_decoding(self):
    """Returns a copy whose kernels and biases in blocks are cast to config.dtype once.

    All results stay bit for bit the same, as these are cast at use anyway; but a decoding loop
    reads half the bytes in bfloat16. Not for training: small updates vanish in bfloat16.
    """

    def cast(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      products = name.startswith('blocks/') and ('/kernel' in name or '/bias' in name)
      return leaf.astype(self.config.dtype) if products else leaf

    return jax.tree_util.tree_map_with_path(cast, self)

  # --- inside ---
  def _embed(self, tokens):
    # clip: an id out of range, in padding for example, may not turn into NaN
    return self.embed[...].at[tokens].get(mode='clip').astype(self.config.dtype)

  def _rope(self, positions):
    config = self.config
    frequencies = attention.rotary_frequencies(config.head_dim, config.rope_theta,
                                               config.rope_scaling)
    return attention.rotary_table(positions, frequencies)

  def _prompt_side(self, prompts, prompt_lengths):
    """(rope, mask) of the prompts' own causal pass."""
    width = prompts.shape[1]
    return (self._rope(jnp.arange(width)[None]), attention.causal_mask(width, prompt_lengths))


def _last_token(prompts, prompt_lengths):
  """The last prompt token and its position, i32[P] each."""
  start = jnp.maximum(prompt_lengths - 1, 0)
  return jnp.take_along_axis(prompts, start[:, None], axis=1, mode='clip')[:, 0], start


def _rematerialised(layer, remat):
  # prevent_cse guards what a scan's body needs no guarding from, and would cost fusions
  return jax.checkpoint(layer, prevent_cse=False) if remat else layer


# --- making one ----------------------------------------------------------------------------------
def init(config: DecoderConfig, key) -> Decoder:
  """Returns a freshly initialised Decoder; trace it under jit with out_shardings, or eval_shape."""
  return Decoder(config, rngs=nnx.Rngs(key))


def abstract(config: DecoderConfig) -> Decoder:
  """Returns a Decoder of ShapeDtypeStructs: the names and shapes, without the weights."""
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
