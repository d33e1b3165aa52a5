"""Policy losses, ratios, corrections and aggregations once more: float64, one token at a time.

Written from the formulas of the papers, in plain loops, to be compared with rft_jax/objectives.
`moving` is what is differentiated; `held` the same numbers where the formula holds them constant.
"""

import math

import numpy as np


def e(x):
  return math.exp(min(max(x, -20.0), 20.0))


def tokens(mask):
  return [t for t in range(len(mask)) if mask[t]]


def ratio(level, moving, held, old, mask):
  """One row's ratios: list with an entry for each token, None where masked."""
  chosen = tokens(mask)
  deltas = [moving[t] - old[t] for t in chosen]
  out = [None] * len(mask)
  for t in chosen:
    if level == 'token':
      out[t] = e(moving[t] - old[t])
    elif level == 'sequence':
      out[t] = e(sum(deltas) / len(deltas))
    elif level == 'sequence_token':
      out[t] = e(sum(held[s] - old[s] for s in chosen) / len(chosen)) * math.exp(
        moving[t] - held[t]
      )
    elif level == 'product':
      out[t] = e(sum(deltas))
    elif level == 'none':
      out[t] = math.exp(moving[t] - held[t])
  return out


def loss(config, moving, held, old, advantages, mask, widths):
  """One row's losses: list with 0 where masked."""
  level, name = config.ratio_level, config.loss
  r = ratio(level, moving, held, old, mask)
  fixed = ratio(level, held, held, old, mask)
  low, high = widths
  out = [0.0] * len(mask)
  chosen = tokens(mask)
  for t in chosen:
    A = advantages[t]
    if name in ('clip', 'luspo'):
      free = min(r[t], config.delta) if config.delta else r[t]
      out[t] = -min(free * A, min(max(r[t], 1 - low), 1 + high) * A)
      if config.dual_clip and A < 0:
        out[t] = min(out[t], -config.dual_clip * A)
    elif name == 'policy_gradient':
      out[t] = -A * moving[t]
    elif name == 'unclipped':
      out[t] = -r[t] * A
    elif name == 'cispo':
      weight = max(min(fixed[t], config.cispo_high_level), 1 - config.cispo_low_width)
      out[t] = -weight * A * moving[t]
    elif name == 'gmpo':
      total = 0.0
      for s in chosen:
        d = moving[s] - old[s]
        if advantages[s] > 0:
          total += min(d, high)
        else:
          total += max(d, -low)
      out[t] = -A * e(total / len(chosen))
    elif name == 'sapo':
      tau = config.sapo_tau_positive if A > 0 else config.sapo_tau_negative
      out[t] = -(4 / tau) * A / (1 + math.exp(-min(tau * (r[t] - 1), 700.0)))
    elif name == 'vespo':
      w = fixed[t]
      k, lam = (
        (config.vespo_power_positive, config.vespo_rate_positive)
        if A >= 0
        else (config.vespo_power_negative, config.vespo_rate_negative)
      )
      out[t] = -math.exp(max(lam + k * math.log(w) - lam * w, -700.0)) * A * moving[t]
    elif name == 'dppo_tv':
      p, q = math.exp(held[t]), math.exp(old[t])
      stopped = (A > 0 and p - q > config.dppo_high) or (A < 0 and q - p > config.dppo_low)
      out[t] = 0.0 if stopped else -r[t] * A
  return out


def losses(config, moving, held, old, advantages, mask, widths):
  return np.array([loss(config, *row, widths) for row in zip(moving, held, old, advantages, mask)])


def aggregate(name, values, mask, length=None, group=None):
  """The mean that a step's loss is, over whole arrays."""
  rows = [[values[b][t] for t in tokens(mask[b])] for b in range(len(values))]
  full = [row for row in rows if row]
  if name == 'token_mean':
    return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
  if name == 'sequence_mean':
    return sum(sum(row) / len(row) for row in full) / len(full)
  if name == 'sequence_sum':
    return sum(sum(row) for row in full) / len(full)
  if name == 'constant':
    return sum(sum(row) for row in full) / (len(full) * length)
  if name == 'prompt_mean':
    found = []
    for prompt in sorted(set(group)):
      together = sum((row for row, g in zip(rows, group) if g == prompt), [])
      if together:
        found.append(sum(together) / len(together))
    return sum(found) / len(found)


def correction(config, d, mask):
  """One row's sampler weights; 1 where masked, which nothing reads."""
  chosen = tokens(mask)
  kappa = {t: e(d[t]) for t in chosen}
  out = [1.0] * len(mask)
  if not chosen:
    return out
  product = e(sum(d[t] for t in chosen))
  geometric = e(sum(d[t] for t in chosen) / len(chosen))
  inside = config.geometric_low <= geometric <= config.geometric_high
  for t in chosen:
    out[t] = {
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
        sum(d[s] ** 2 / 2 for s in chosen) / len(chosen) <= config.filter_limit
      ),
      'k3_filter': lambda: float(
        sum(kappa[s] - 1 - d[s] for s in chosen) / len(chosen) <= config.filter_limit
      ),
    }[config.correction]()
  return out


def gradient(function, at, step=1e-6):
  """Central differences of function(array) -> float, by every entry."""
  at = np.array(at, np.float64)
  out = np.zeros_like(at)
  for index in np.ndindex(at.shape):
    above, below = at.copy(), at.copy()
    above[index] += step
    below[index] -= step
    out[index] = (function(above) - function(below)) / (2 * step)
  return out
