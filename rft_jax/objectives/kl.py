"""Per-token estimators of KL(policy || reference) from log-probs of sampled tokens."""
import jax.numpy as jnp

MAX_LOG_RATIO = 20.0  # exp() beyond would overflow the loss; what is logged is not clamped


def k1(logprobs, reference_logprobs):
  """log p - log q: unbiased; as a loss its gradient has expectation 0."""
  return logprobs - reference_logprobs


def k2(logprobs, reference_logprobs):
  """(log p - log q)^2 / 2: as a loss, the gradient of the reverse KL on policy."""
  return 0.5 * jnp.square(logprobs - reference_logprobs)


def k3(logprobs, reference_logprobs):
  """q/p - 1 - log(q/p): never negative, low variance; http://joschu.net/blog/kl-approx.html."""
  log_ratio = reference_logprobs - logprobs
  clamped = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jnp.expm1(clamped) - clamped


ESTIMATORS = {'k1': k1, 'k2': k2, 'k3': k3}
