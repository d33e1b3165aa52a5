"""How the next token is drawn from logits: temperature, top-k, top-p, min-p, greedy."""
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.logprobs import temper

NEVER = -1e30  # a logit of this is never sampled, and its exp is 0


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplingConfig:
  """How completions are drawn.

  Filters make the sampled distribution another one than the policy that is trained, so training
  rollouts want top_k=0, top_p=1, min_p=0; the log-probs kept for training are those before the
  filters in any case.
  """
  max_new_tokens: int = 512  # per completion, the stop token included
  # Sampler and scorer both divide the logits by the temperature, so their log-probs agree at
  # every value. 0 is greedy, for evaluation; its log-probs are those of temperature 1.
  temperature: float = 1.0
  top_k: int = 0  # keep the k most probable tokens; 0: all
  top_p: float = 1.0  # nucleus mass; Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
  min_p: float = 0.0  # drop tokens below this share of the most probable one's probability

  def validate(self) -> list[str]:
    checks = (
        (self.max_new_tokens >= 1, f'max_new_tokens={self.max_new_tokens}, need >= 1'),
        (self.temperature >= 0, f'temperature={self.temperature}, need >= 0'),
        (self.top_k >= 0, f'top_k={self.top_k}, need >= 0 (0: no limit)'),
        (0 < self.top_p <= 1, f'top_p={self.top_p}, need 0 < top_p <= 1'),
        (0 <= self.min_p < 1, f'min_p={self.min_p}, need 0 <= min_p < 1'),
    )
    return [problem for good, problem in checks if not good]

  @property
  def filtered(self) -> bool:
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Knobs(NamedTuple):
  """The settings as traced numbers: changing one does not compile again."""
  temperature: jax.Array  # f32[]
  top_k: jax.Array  # i32[]
  top_p: jax.Array  # f32[]
  min_p: jax.Array  # f32[]


class Drawn(NamedTuple):
  tokens: jax.Array  # i32[B]
  logprobs: jax.Array  # f32[B] nats, before the filters
  filtered_logprobs: jax.Array  # f32[B] nats, after them


def knobs(config: SamplingConfig) -> Knobs:
  return Knobs(jnp.float32(config.temperature), jnp.int32(config.top_k),
               jnp.float32(config.top_p), jnp.float32(config.min_p))


def draw(logits, keys, knobs: Knobs, *, valid_vocab: int, filtered: bool) -> Drawn:
  """Draws one token a row.

  Args:
    logits: f32[B, V], raw.
    keys: key[B], one for each row and position; used once.
    valid_vocab: ids from here on are padding of the embedding and never drawn.
    filtered: static; False skips the sort that top-k and top-p need.
  """
  greedy = knobs.temperature == 0
  logits = temper(logits, jnp.where(greedy, 1.0, knobs.temperature), valid_vocab)
  kept = _filter(logits, knobs) if filtered else logits
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
  tokens = jnp.argmax(kept + jnp.where(greedy, 0.0, noise), -1).astype(jnp.int32)
  pick = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), tokens[:, None], 1)[:, 0]
  logprobs = pick(logits)
  return Drawn(tokens, logprobs, pick(kept) if filtered else logprobs)


def _filter(logits, knobs):
  """Returns logits with the tokens that the filters drop at NEVER; the best always stays.

  As in transformers, top-k is applied first, then top-p on what is left, then min-p on what
  the others left; the sort is in descending order and ties at a threshold stay in.
  """
  V = logits.shape[-1]
  ordered = -jnp.sort(-logits, -1)
  kth = jnp.take(ordered, jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, V), V) - 1, axis=-1)
  inside = ordered >= kth[:, None]
  probabilities = jax.nn.softmax(jnp.where(inside, ordered, NEVER))
  before = jnp.cumsum(probabilities, -1) - probabilities  # mass of the tokens ahead
  nucleus = inside & (before < knobs.top_p)
  smallest = jnp.min(jnp.where(nucleus, ordered, jnp.inf), -1)
  floor = jnp.where(knobs.min_p > 0, ordered[:, 0] + jnp.log(knobs.min_p), -jnp.inf)
  return jnp.where(logits >= jnp.maximum(smallest, floor)[:, None], logits, NEVER)
