"""What the doctor reads off the policy's samples: reward variance, faults, truncation."""

import collections
import math

import numpy as np

from rft_jax.config import DoctorConfig
from rft_jax.doctor.findings import Finding
from rft_jax.run.evaluate import pass_at_k
from rft_jax.types import Episode


def grades(groups, settings: DoctorConfig, threshold):
  """Returns (findings, values): reward variance within rows, pass@k, and the rows' means."""
  rewards = np.array(
    [[math.nan if e.grade.reward is None else e.grade.reward for e in group] for group in groups]
  )
  rows = [
    {'row': group[0].item.source, 'mean': _number(np.mean(row)), 'std': _number(np.std(row))}
    for group, row in zip(groups, rewards)
  ]
  graded = rewards[~np.isnan(rewards).any(1)]
  values = {'rows': rows}
  if not len(graded):
    return [Finding('no-go', 'no row could be graded in all of its samples')], values
  G = graded.shape[1]
  zero_variance = float(np.mean(graded.max(1) == graded.min(1)))
  mean, best = float(graded.mean()), float(graded.max())
  passed = (graded >= threshold).sum(1)
  values |= {
    'reward_mean': mean,
    'reward_max': best,
    'frac_reward_zero_std': zero_variance,
    'pass@1': float(np.mean([pass_at_k(G, c, 1) for c in passed])),
    f'pass@{G}': float(np.mean([pass_at_k(G, c, G) for c in passed])),
  }
  summary = (
    f'mean grade {mean:.3f}, best {best:.3f}; {zero_variance:.0%} of {len(graded)} rows have the '
    f'same grade in all {G} samples; pass@1 {values["pass@1"]:.3f}, pass@{G} '
    f'{values[f"pass@{G}"]:.3f} (a sample passes from grade {threshold:g})'
  )
  return [_of_variance(zero_variance, summary, graded, settings, threshold)], values


def _of_variance(zero_variance, summary, graded, settings, threshold):
  if zero_variance < 0.5:
    return Finding('fine', summary)
  if zero_variance < settings.max_zero_variance_rows:
    return Finding(
      'warning',
      f'little reward variance: {summary}. Only rows whose samples differ have a gradient: more '
      'samples a row help',
    )
  low = graded.min()
  if low < threshold and np.mean(graded == low) > 0.5:
    reason = (
      f'Too hard: most samples get {low:g}. Warm up on worked answers (a supervised stage '
      'before), take easier rows, or use a grader with more levels'
    )
  else:
    reason = f'Too easy: most samples get {graded.max():g}. Take harder rows'
  return Finding('no-go', f'no reward variance: {summary}. {reason}')


def faults(episodes: list[Episode], config):
  """Returns (findings, values): errors by kind, and whether grader or policy causes them."""
  n = len(episodes)
  errors = collections.Counter(
    key for e in episodes for key, value in e.grade.errors.items() if value is True
  )
  findings = []
  grader_faults = [e for e in episodes if e.grade.reward is None]
  if len(grader_faults) > config.max_grader_faults * n:
    first = grader_faults[0]
    findings.append(
      Finding(
        'no-go',
        f'the grader fails on {len(grader_faults) / n:.0%} of the samples: '
        f'{first.item.source}: {_error_text(first.grade.errors)}',
      )
    )
  findings += _exceptions(episodes)
  for key, remedy in (
    ('sample_parse_error', 'warm up on answers in the right form, or show one in the prompt'),
    (
      'unresponsive_reward_error',
      'no end of the reasoning: raise rollout.max_new_tokens, or check chat.reasoning',
    ),
    ('invalid_variable_error', 'answers lack fields that the grader reads'),
  ):
    if errors[key] > n / 2 and not grader_faults:
      text = f'{key} in {errors[key] / n:.0%} of the samples: {remedy}'
      findings.append(Finding('warning', text))
  if not findings:
    shares = ', '.join(f'{key} {count / n:.1%}' for key, count in errors.items())
    findings.append(Finding('fine', f'faults: {shares or "none"}'))
  return findings, {'errors': {key: count / n for key, count in errors.items()}}


def _exceptions(episodes):
  """Returns a finding where the user's python raises the same exception in most samples."""
  details = [
    e.grade.errors['python_grader_runtime_error_details']
    for e in episodes
    if 'python_grader_runtime_error_details' in e.grade.errors
  ]
  last_lines = collections.Counter(text.strip().split('\n')[-1] for text in details)
  for exception, count in last_lines.most_common(1):
    if count > len(episodes) / 2:
      text = (
        f'the grader raises in {count / len(episodes):.0%} of the samples: {exception}. A field '
        'that the rows do not have, or an answer that it does not expect: correct the grader'
      )
      return [Finding('no-go', text)]
  return []


def _error_text(errors) -> str:
  return '; '.join(key if value is True else str(value) for key, value in errors.items())[:300]


def tokens(episodes, config):
  """Returns (findings, values): completion lengths, and the share that was truncated."""
  lengths = np.array([len(e.sample.tokens) for e in episodes])
  truncated = float(np.mean([e.sample.stop_reason == 'length' for e in episodes]))
  text = (
    f'{lengths.mean():.0f} tokens a sample, {truncated:.0%} truncated at rollout.max_new_tokens='
    f'{config.max_new_tokens}'
  )
  values = {'tokens_mean': float(lengths.mean()), 'truncated': truncated}
  return [Finding('warning' if truncated > 0.3 else 'fine', text)], values


def _number(value) -> float | None:
  return None if math.isnan(value) else float(value)
