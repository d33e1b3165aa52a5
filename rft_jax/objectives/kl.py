"""Estimators of KL(policy || reference), per token, from log-probs of sampled tokens or logits.

Written with x = log q - log p: p the policy's probability of a sampled token, q the reference's.
What a masked position holds is read here; masked.only() goes before. As a loss, with tokens
sampled from the policy itself, the expected gradients are those of:

  k1                 nothing: it is 0             k2                 KL(p || q), what one wants
  abs                no divergence                k3                 KL(q || p), of low variance
  straight_through   KL(p || q), shown as k3      scored_k3, full    KL(p || q)
"""

import jax
import jax.numpy as jnp

MAX_LOG_RATIO = 20.0  # exp() beyond would overflow the loss; what is logged is not clamped


def clamped_exp(log_ratio):
  """Returns exp(log_ratio) with the argument held within +-MAX_LOG_RATIO."""
  return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def distance(log_ratio):
  """Returns |log_ratio| with a gradient of 0 at 0, where jnp.abs has 1 and would push on policy."""
  return log_ratio * jax.lax.stop_gradient(jnp.sign(log_ratio))


def k1(logprobs, reference_logprobs):
  """-x: unbiased; as a loss its gradient has expectation 0."""
  return logprobs - jax.lax.stop_gradient(reference_logprobs)


def absolute(logprobs, reference_logprobs):
  """|x|: how far apart the two are, whichever is above; not a KL. The gradient at x = 0 is 0."""
  return distance(k1(logprobs, reference_logprobs))


def k2(logprobs, reference_logprobs):
  """x^2 / 2: as a loss, the gradient of the reverse KL on policy."""
  return 0.5 * jnp.square(k1(logprobs, reference_logprobs))


def k3(logprobs, reference_logprobs):
  """e^x - 1 - x: never negative, low variance; http://joschu.net/blog/kl-approx.html.

  Above x = 20 it stays what it is there. Below -20 only the exponential does, which is 0: a token
  that the policy finds e^100 times more probable than the reference shows as 99, and is pulled.
  """
  x = -k1(logprobs, reference_logprobs)
  return jnp.expm1(jnp.clip(x, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - jnp.minimum(x, MAX_LOG_RATIO)


def straight_through(logprobs, reference_logprobs):
  """The value of k3 with the gradient of k2: right to learn from, quiet to look at."""
  gradient = k2(logprobs, reference_logprobs)
  value = k3(logprobs, reference_logprobs)
  return gradient - jax.lax.stop_gradient(gradient) + jax.lax.stop_gradient(value)


def scored_k3(logprobs, reference_logprobs, ratio):
  """ratio * k3, with the gradient of the ratio too: unbiased for tokens of an older policy.

      d/dtheta = ratio * (k3 + dk3/dlog p) * dlog p/dtheta = -ratio * x * dlog p/dtheta

  which is the gradient of KL(p || q) when tokens come from the policy below the ratio.
  DeepSeek-V3.2, https://arxiv.org/abs/2512.02556.

  Args:
    logprobs, reference_logprobs: f32[B, T] nats.
    ratio: f32[B, T], ratios.token(): p over the probability that the token was sampled with.
  """
  return ratio * k3(logprobs, reference_logprobs)


def full(logits, reference_logits):
  """Returns KL(p || q) f32[...] in nats, exact over the vocabulary; no sampling in it.

      sum_v p(v) (log p(v) - log q(v))

  Args:
    logits, reference_logits: [..., V], tempered alike and not filtered; call it on a few tokens at
      a time, as an array over all tokens and the vocabulary is large. A token that p rules out
      (-inf, or -1e30) adds 0.
  """
  logits = logits.astype(jnp.float32)
  reference_logits = jax.lax.stop_gradient(reference_logits).astype(jnp.float32)
  log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference_logits)
  p = jnp.exp(log_p)
  return (p * jnp.where(p > 0, log_p - log_q, 0.0)).sum(-1)


ESTIMATORS = {'k1': k1, 'abs': absolute, 'k2': k2, 'k3': k3, 'straight_through': straight_through}
