"""Sampling of the next token from logits: temperature, top-k, top-p, min-p, greedy."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.logprobs import apply_temperature

EXCLUDED = -1e30  # the logit of a token that is never sampled: its exp is 0


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplingConfig:
  """How completions are sampled.

  With a filter (top-k, top-p, min-p) the samples are from another distribution than the policy that
  is trained, so training rollouts want top_k=0, top_p=1, min_p=0; the log-probs stored for training
  are those before the filters in any case.
  """

  max_new_tokens: int = 512  # per completion, the stop token included
  # Sampler and scorer both divide the logits by the temperature, so their log-probs agree at
  # every value. 0 is greedy, for evaluation; its log-probs are those of temperature 1.
  temperature: float = 1.0
  top_k: int = 0  # only the k most probable tokens; 0: all
  top_p: float = 1.0  # nucleus mass; Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
  min_p: float = 0.0  # no tokens below this share of the most probable one's probability

  def validate(self) -> list[str]:
    checks = (
      (self.max_new_tokens >= 1, f'max_new_tokens={self.max_new_tokens}, need >= 1'),
      (self.temperature >= 0, f'temperature={self.temperature}, need >= 0'),
      (self.top_k >= 0, f'top_k={self.top_k}, need >= 0 (0: no limit)'),
      (0 < self.top_p <= 1, f'top_p={self.top_p}, need 0 < top_p <= 1'),
      (0 <= self.min_p < 1, f'min_p={self.min_p}, need 0 <= min_p < 1'),
    )
    return [problem for valid, problem in checks if not valid]

  @property
  def filtered(self) -> bool:
    """Whether any of top-k, top-p and min-p is on."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class SamplerParams(NamedTuple):
  """The settings as traced numbers: another value does not compile again."""

  temperature: jax.Array  # f32[]
  top_k: jax.Array  # i32[]
  top_p: jax.Array  # f32[]
  min_p: jax.Array  # f32[]


class SampledTokens(NamedTuple):
  """One token for each row, and its log-probs."""

  tokens: jax.Array  # i32[B]
  logprobs: jax.Array  # f32[B] nats, before the filters
  filtered_logprobs: jax.Array  # f32[B] nats, after them


def sampler_params(config: SamplingConfig) -> SamplerParams:
  return SamplerParams(
    jnp.float32(config.temperature),
    jnp.int32(config.top_k),
    jnp.float32(config.top_p),
    jnp.float32(config.min_p),
  )


def sample_tokens(
  logits, keys, sampler_params: SamplerParams, *, valid_vocab: int, filtered: bool
) -> SampledTokens:
  """Samples one token for each row.

  Args:
    logits: f32[B, V], before the temperature.
    keys: key[B], one for each row and position; used once.
    valid_vocab: ids from here on are padding of the embedding and never sampled.
    filtered: static; False skips the search that top-k, top-p and min-p need.
  """
  greedy = sampler_params.temperature == 0
  logits = apply_temperature(
    logits, jnp.where(greedy, 1.0, sampler_params.temperature), valid_vocab
  )
  filtered_logits = filter_logits(logits, sampler_params) if filtered else logits
  maximum = logits.max(-1, keepdims=True)
  mass = jnp.exp(filtered_logits - maximum)
  tokens = jnp.where(greedy, _first_true(logits == maximum), _sample_index(mass, keys)).astype(
    jnp.int32
  )
  token_logprobs = lambda x, total: (
    jnp.take_along_axis(x - maximum, tokens[:, None], 1)[:, 0] - jnp.log(total)
  )
  filtered_logprobs = token_logprobs(filtered_logits, mass.sum(-1))
  return SampledTokens(
    tokens,
    token_logprobs(logits, jnp.exp(logits - maximum).sum(-1)) if filtered else filtered_logprobs,
    filtered_logprobs,
  )


def _first_true(mask):
  """Returns the index of the first True of each row, i32[B]; several times faster than argmax."""
  size = mask.shape[-1]
  return jnp.where(mask, jnp.arange(size), size - 1).min(-1)


def _sample_index(mass, keys):
  """Returns one index for each row, sampled in proportion to mass f32[B, V] by inverting its sum.

  First a block of the vocabulary is sampled, then a token within it, each with a uniform number of
  its own. Two numbers a row where the Gumbel trick takes V: on two CPU cores, at 32 x 4096,
  0.26 ms against 2.7. The second number also resolves tails that one float32 could not.
  """
  B, V = mass.shape
  size = 1 << max(V.bit_length() // 2, 1)
  blocks = jnp.pad(mass, [(0, 0), (0, -V % size)]).reshape(B, -1, size)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  block = _invert_cumulative(blocks.sum(-1), uniform[:, 0])
  block_mass = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return block * size + _invert_cumulative(block_mass, uniform[:, 1])


def _invert_cumulative(mass, uniform):
  """Returns the first index whose cumulative mass passes uniform [B] times the total; never one of
  mass 0, also where rounding puts the product at the very end."""
  cumulative = jnp.cumsum(mass, -1)
  total = cumulative[:, -1:]
  return jnp.minimum((cumulative <= uniform[:, None] * total).sum(-1), (cumulative < total).sum(-1))


# --- top-k, top-p, min-p -------------------------------------------------------------------------
def filter_logits(logits, sampler_params: SamplerParams):
  """Returns logits f32[B, V] with the tokens that the filters drop at EXCLUDED.

  As in transformers, top-k is applied first, then top-p on what remains, then min-p on what remains
  of both. Ties at a threshold are not dropped, nor is the most probable token. No sort: the
  thresholds are searched instead.
  """
  V = logits.shape[-1]
  k = jnp.where(sampler_params.top_k > 0, jnp.minimum(sampler_params.top_k, V), V)
  kth = _smallest_float(lambda x: (logits > x).sum(-1) < k, len(logits))
  top_k_logits = jnp.where(logits >= kth, logits, EXCLUDED)
  probabilities = jax.nn.softmax(top_k_logits)
  nucleus = _smallest_float(
    lambda x: jnp.where(top_k_logits > x, probabilities, 0.0).sum(-1) < sampler_params.top_p,
    len(logits),
  )
  maximum = logits.max(-1, keepdims=True)  # not dropped, also where rounding would
  min_p_floor = jnp.where(
    sampler_params.min_p > 0, maximum + jnp.log(sampler_params.min_p), -jnp.inf
  )
  threshold = jnp.maximum(jnp.minimum(nucleus, maximum), min_p_floor)
  return jnp.where(top_k_logits >= threshold, top_k_logits, EXCLUDED)


def _smallest_float(condition, rows: int):
  """Returns for each row the smallest float32 that meets a condition, f32[B, 1].

  Args:
    condition: f32[B, 1] -> bool[B], False below some number and True from it on.
    rows: B.

  A search over the 32 bits of a float32 from the highest on: 32 passes over the logits, whatever
  they are, where sorting a row of V takes the longer the larger V is (and CPUs sort badly).
  """

  def number(bits):  # in the order of the bits as an unsigned integer
    magnitude = jnp.where(bits >> 31 == 1, bits ^ jnp.uint32(1 << 31), ~bits)
    return jax.lax.bitcast_convert_type(magnitude, jnp.float32)[:, None]

  def body(i, bits):  # bits: the largest prefix so far all of whose numbers fail the condition
    larger = bits | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(condition(number(larger - 1)), bits, larger)

  smallest = number(jax.lax.fori_loop(0, 32, body, jnp.zeros(rows, jnp.uint32)))
  return jnp.where(jnp.isnan(smallest), -jnp.inf, smallest)  # below -inf are NaNs: no limit
