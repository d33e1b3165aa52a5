"""Reference implementations of policy losses, ratios, corrections, aggregations, and gradients.

Written from the formulas of the papers, in float64, in plain loops over tokens, for comparison with
rft_jax/objectives. `logprobs` are differentiated; `constant` has the same numbers where the formula
has a stop-gradient.
"""

import math

import numpy as np


def clamped_exp(x):
  return math.exp(min(max(x, -20.0), 20.0))


def tokens(mask):
  return [t for t in range(len(mask)) if mask[t]]


def ratio(level, logprobs, constant, old, mask):
  """The ratios of one row: a list with an entry for each token, None where masked."""
  positions = tokens(mask)
  deltas = [logprobs[t] - old[t] for t in positions]
  result = [None] * len(mask)
  for t in positions:
    if level == 'token':
      result[t] = clamped_exp(logprobs[t] - old[t])
    elif level == 'sequence':
      result[t] = clamped_exp(sum(deltas) / len(deltas))
    elif level == 'sequence_token':
      result[t] = clamped_exp(
        sum(constant[s] - old[s] for s in positions) / len(positions)
      ) * math.exp(logprobs[t] - constant[t])
    elif level == 'product':
      result[t] = clamped_exp(sum(deltas))
    elif level == 'none':
      result[t] = math.exp(logprobs[t] - constant[t])
  return result


def loss(config, logprobs, constant, old, advantages, mask, widths):
  """The losses of one row: a list with 0 where masked."""
  level, name = config.ratio_level, config.loss
  r = ratio(level, logprobs, constant, old, mask)
  constant_ratio = ratio(level, constant, constant, old, mask)
  low, high = widths
  result = [0.0] * len(mask)
  positions = tokens(mask)
  for t in positions:
    A = advantages[t]
    if name in ('clip', 'luspo'):
      bounded = min(r[t], config.delta) if config.delta else r[t]
      result[t] = -min(bounded * A, min(max(r[t], 1 - low), 1 + high) * A)
      if config.dual_clip and A < 0:
        result[t] = min(result[t], -config.dual_clip * A)
    elif name == 'policy_gradient':
      result[t] = -A * logprobs[t]
    elif name == 'unclipped':
      result[t] = -r[t] * A
    elif name == 'cispo':
      weight = max(min(constant_ratio[t], config.cispo_high_level), 1 - config.cispo_low_width)
      result[t] = -weight * A * logprobs[t]
    elif name == 'gmpo':
      total = 0.0
      for s in positions:
        d = logprobs[s] - old[s]
        if advantages[s] > 0:
          total += min(d, high)
        else:
          total += max(d, -low)
      result[t] = -A * clamped_exp(total / len(positions))
    elif name == 'sapo':
      tau = config.sapo_tau_positive if A > 0 else config.sapo_tau_negative
      result[t] = -(4 / tau) * A / (1 + math.exp(-min(tau * (r[t] - 1), 700.0)))
    elif name == 'vespo':
      w = constant_ratio[t]
      k, lam = (
        (config.vespo_power_positive, config.vespo_rate_positive)
        if A >= 0
        else (config.vespo_power_negative, config.vespo_rate_negative)
      )
      result[t] = -math.exp(max(lam + k * math.log(w) - lam * w, -700.0)) * A * logprobs[t]
    elif name == 'dppo_tv':
      p, q = math.exp(constant[t]), math.exp(old[t])
      stopped = (A > 0 and p - q > config.dppo_high) or (A < 0 and q - p > config.dppo_low)
      result[t] = 0.0 if stopped else -r[t] * A
  return result


def losses(config, logprobs, constant, old, advantages, mask, widths):
  return np.array(
    [loss(config, *row, widths) for row in zip(logprobs, constant, old, advantages, mask)]
  )


def aggregate(name, values, mask, length=None, group=None):
  """The loss of a step from the losses of its tokens, whole arrays."""
  rows = [[values[b][t] for t in tokens(mask[b])] for b in range(len(values))]
  nonempty = [row for row in rows if row]
  if name == 'token_mean':
    return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
  if name == 'sequence_mean':
    return sum(sum(row) / len(row) for row in nonempty) / len(nonempty)
  if name == 'sequence_sum':
    return sum(sum(row) for row in nonempty) / len(nonempty)
  if name == 'constant':
    return sum(sum(row) for row in nonempty) / (len(nonempty) * length)
  if name == 'prompt_mean':
    prompt_means = []
    for prompt in sorted(set(group)):
      group_values = sum((row for row, g in zip(rows, group) if g == prompt), [])
      if group_values:
        prompt_means.append(sum(group_values) / len(group_values))
    return sum(prompt_means) / len(prompt_means)


def correction(config, d, mask):
  """The sampler corrections of one row; 1 where masked, which is never read."""
  positions = tokens(mask)
  kappa = {t: clamped_exp(d[t]) for t in positions}
  result = [1.0] * len(mask)
  if not positions:
    return result
  product = clamped_exp(sum(d[t] for t in positions))
  geometric = clamped_exp(sum(d[t] for t in positions) / len(positions))
  inside = config.geometric_low <= geometric <= config.geometric_high
  for t in positions:
    result[t] = {
      'none': lambda: 1.0,
      'tis': lambda: min(kappa[t], config.cap),
      'icepop': lambda: kappa[t] if config.icepop_low <= kappa[t] <= config.icepop_high else 0,
      'sequence_tis': lambda: min(product, config.cap),
      'sequence_mask': lambda: product if product <= config.mask_cap else 0.0,
      'geometric_mask': lambda: float(inside),
      'sequence_mask_tis': lambda: min(kappa[t], config.cap) if inside else 0.0,
      'outlier_mask': lambda: float(
        all(config.outlier_low <= k <= config.outlier_high for k in kappa.values())
      ),
      'k2_filter': lambda: float(
        sum(d[s] ** 2 / 2 for s in positions) / len(positions) <= config.filter_limit
      ),
      'k3_filter': lambda: float(
        sum(kappa[s] - 1 - d[s] for s in positions) / len(positions) <= config.filter_limit
      ),
    }[config.correction]()
  return result


def gradient(function, point, step=1e-6):
  """Central differences of function(array) -> float, for every entry."""
  point = np.array(point, np.float64)
  result = np.zeros_like(point)
  for index in np.ndindex(point.shape):
    above, below = point.copy(), point.copy()
    above[index] += step
    below[index] -= step
    result[index] = (function(above) - function(below)) / (2 * step)
  return result


def log_sigma(z):
  return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def sigma(z):
  return math.exp(log_sigma(z))
