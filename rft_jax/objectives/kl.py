"""Estimators of KL(policy || reference), per token, from log-probs of sampled tokens.

Written with x = log q - log p: p the policy's probability of a sampled token, q the reference's.
Masked positions are read here, so masked.apply_mask() goes first. As a loss, with tokens sampled
from the policy itself, the expected gradients are those of:

  k1                 nothing: it is 0             k2           KL(p || q), the one to minimise
  abs                no divergence                k3           KL(q || p), of low variance
  straight_through   KL(p || q), with k3's value  scored_k3    KL(p || q)
"""

import jax
import jax.numpy as jnp

MAX_LOG_RATIO = 20.0  # exp() beyond would overflow the loss; what is logged is not clamped


def clamped_exp(log_ratio):
  """Returns exp(log_ratio) with the argument clamped to +-MAX_LOG_RATIO."""
  return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def safe_abs(log_ratio):
  """Returns |log_ratio| with gradient 0 at 0, where jnp.abs has 1: on policy nothing may move."""
  return log_ratio * jax.lax.stop_gradient(jnp.sign(log_ratio))


def k1(logprobs, reference_logprobs):
  """-x: unbiased; as a loss its gradient has expectation 0."""
  return logprobs - jax.lax.stop_gradient(reference_logprobs)


def absolute(logprobs, reference_logprobs):
  """|x|: the distance of the two log-probs; not a KL. The gradient at x = 0 is 0."""
  return safe_abs(k1(logprobs, reference_logprobs))


def k2(logprobs, reference_logprobs):
  """x^2 / 2: as a loss, the gradient of the reverse KL on policy."""
  return 0.5 * jnp.square(k1(logprobs, reference_logprobs))


def k3(logprobs, reference_logprobs):
  """e^x - 1 - x: never negative, low variance; http://joschu.net/blog/kl-approx.html.

  Above x = 20 it is constant. Below -20 only the exponential is, which is 0 there: a token that the
  policy finds e^100 times more probable than the reference has the value 99 and a gradient of 1.
  """
  x = -k1(logprobs, reference_logprobs)
  return jnp.expm1(jnp.clip(x, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - jnp.minimum(x, MAX_LOG_RATIO)


def straight_through(logprobs, reference_logprobs):
  """The value of k3 with the gradient of k2: an unbiased gradient, a logged value of low noise."""
  gradient = k2(logprobs, reference_logprobs)
  value = k3(logprobs, reference_logprobs)
  return gradient - jax.lax.stop_gradient(gradient) + jax.lax.stop_gradient(value)


def scored_k3(logprobs, reference_logprobs, ratio):
  """ratio * k3, with the gradient of the ratio too: unbiased for tokens of an older policy.

      d/dtheta = ratio * (k3 + dk3/dlog p) * dlog p/dtheta = -ratio * x * dlog p/dtheta

  which is the gradient of KL(p || q) when tokens come from the policy in the ratio's denominator.
  DeepSeek-V3.2, https://arxiv.org/abs/2512.02556.

  Args:
    logprobs, reference_logprobs: f32[B, T] nats.
    ratio: f32[B, T], importance_ratios.token(): p over the probability that the token was sampled
      with.
  """
  return ratio * k3(logprobs, reference_logprobs)


ESTIMATORS = {'k1': k1, 'abs': absolute, 'k2': k2, 'k3': k3, 'straight_through': straight_through}
