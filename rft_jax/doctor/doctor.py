"""Before money is spent: are data, grader and policy fit for reinforcement? Go or no-go, and why.

The policy that reinforcement would start from answers some rows several times. What is asked of
them: does the grade vary within the samples of a row (else there is nothing to learn), does it
come at all, is it fair to whom it should be, and what will the run cost.
"""

import collections
import dataclasses
import math
import time
from typing import Any, NamedTuple

import numpy as np

from rft_jax import graders
from rft_jax.config import Config, DoctorConfig
from rft_jax.data import validate
from rft_jax.data.templates import text_of
from rft_jax.doctor import cost, reward_hacking
from rft_jax.rollout import rollout
from rft_jax.run.evaluate import pass_at_k
from rft_jax.types import Episode, Example

STREAM = 0xD0C  # folded into the seed: the examination has random numbers of its own
FREE = {'type': 'string_check', 'name': 'free', 'operation': 'eq', 'input': '', 'reference': ''}


class Finding(NamedTuple):
  """One thing found. 'no-go' stops, 'warning' is to be thought about, 'fine' is for the record."""

  verdict: str
  text: str


class Examination(NamedTuple):
  """What was found, for people in findings, and the numbers behind it."""

  findings: list[Finding]
  values: dict[str, Any]

  @property
  def go(self) -> bool:
    return not any(finding.verdict == 'no-go' for finding in self.findings)

  def json(self) -> dict[str, Any]:
    """Returns what doctor.json holds."""
    of = lambda verdict: [one.text for one in self.findings if one.verdict == verdict]
    return {
      'verdict': 'go' if self.go else 'no-go',
      'reasons': of('no-go'),
      'warnings': of('warning'),
      'fine': of('fine'),
      **self.values,
    }

  def text(self) -> str:
    """Returns the findings, gravest first, and the verdict below them."""
    marks = {'no-go': 'NO-GO', 'warning': 'warn ', 'fine': 'ok   '}
    lines = [
      f'{marks[verdict]}  {one.text}'
      for verdict in marks
      for one in self.findings
      if one.verdict == verdict
    ]
    return '\n'.join([*lines, '', f'verdict: {"go" if self.go else "no-go"}'])


def refused(reasons: str) -> Examination:
  """Returns the examination of what could not even be built."""
  return Examination(
    [
      Finding('no-go', line.strip())
      for line in reasons.splitlines()
      if line.strip() and line.strip() != 'data:'
    ],
    {},
  )


def examine(config: Config, components, policy) -> Examination:
  """Examines the rooms of a run with the policy that reinforcement would start from."""
  settings = config.doctor
  if components.grader is None:
    found, values = _leakage(components, _train(config, components))
    told = [Finding('warning', text) for text in components.warnings]
    return Examination(told + found + [Finding('fine', 'no grader: nothing is sampled')], values)
  examples = _some(_train(config, components), settings.rows, config.seed)
  sampled, seconds = _sample(config, components, policy, examples)
  episodes = sampled.episodes()
  cases = _cases(config, components, examples, sampled.groups)
  found, values = [Finding('warning', text) for text in components.warnings], {'policy': {}}
  for part in (
    _grades(sampled.groups, settings, config.evaluate.pass_threshold),
    _faults(episodes, config.rollout),
    _tokens(episodes, config.rollout),
    _leakage(components, _train(config, components)),
    _games(components, cases, episodes, config.rollout),
    _cost(config, components, policy, sampled, seconds),
  ):
    found += part[0]
    values |= part[1]
  values['policy'] = sampled.metrics
  return Examination(found, values)


# --- what the policy does ---------------------------------------------------------------------


def _train(config, components) -> list[Example]:
  """Returns the rows of the first reinforced stage, or of the only one."""
  kinds = config.learns_from()
  return components.train[kinds.index('prompts') if 'prompts' in kinds else 0]


def _some(examples, count, seed):
  rng = np.random.default_rng([seed, STREAM])
  places = np.sort(rng.permutation(len(examples))[:count])
  return [examples[place] for place in places]


def _sample(config, components, policy, examples):
  """Returns (Rollout, seconds of a rollout in which nothing is compiled any more)."""
  settings = dataclasses.replace(
    config.rollout, samples_per_prompt=config.doctor.samples_per_prompt, max_grader_faults=1.0
  )
  run = lambda grader: rollout.make(
    components.chat,
    grader,
    settings,
    seed=config.seed ^ STREAM,
    mesh=components.mesh,
    response_format=components.response_format,
  )(policy, examples, list(range(len(examples))), 0)
  run(graders.make(FREE))  # compiles; judges and servers are not asked twice
  began = time.monotonic()
  return run(components.grader), time.monotonic() - began


def _grades(groups, settings: DoctorConfig, threshold):
  """Variance within rows, pass@k, and the spread over rows."""
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
  still = float(np.mean(graded.max(1) == graded.min(1)))
  mean, top = float(graded.mean()), float(graded.max())
  passed = (graded >= threshold).sum(1)
  values |= {
    'reward_mean': mean,
    'reward_max': top,
    'frac_reward_zero_std': still,
    'pass@1': float(np.mean([pass_at_k(G, c, 1) for c in passed])),
    f'pass@{G}': float(np.mean([pass_at_k(G, c, G) for c in passed])),
  }
  what = (
    f'mean grade {mean:.3f}, best {top:.3f}; {still:.0%} of {len(graded)} rows have the same '
    f'grade in all {G} samples; pass@1 {values["pass@1"]:.3f}, pass@{G} '
    f'{values[f"pass@{G}"]:.3f} (from {threshold:g})'
  )
  return [_of_variance(still, what, graded, settings, threshold)], values


def _of_variance(still, what, graded, settings, threshold):
  if still < 0.5:
    return Finding('fine', what)
  if still < settings.max_zero_variance_rows:
    return Finding(
      'warning',
      f'little reward variance: {what}. Only rows whose samples differ '
      'teach anything: more samples a row help',
    )
  low = graded.min()
  if low < threshold and np.mean(graded == low) > 0.5:
    why = (
      f'Too hard: most samples get {low:g}. Warm up on worked answers (a supervised stage '
      'before), take easier rows, or grade in more steps'
    )
  else:
    why = f'Too easy: most samples get {graded.max():g}. Take harder rows'
  return Finding('no-go', f'no reward variance: {what}. {why}')


def _faults(episodes: list[Episode], config):
  """Errors by kind, and whether the grader, rather than the policy, makes them."""
  n = len(episodes)
  errors = collections.Counter(
    key for e in episodes for key, value in e.grade.errors.items() if value is True
  )
  values = {'errors': {key: count / n for key, count in errors.items()}}
  found = []
  faults = [e for e in episodes if e.grade.reward is None]
  if len(faults) > config.max_grader_faults * n:
    found.append(
      Finding(
        'no-go',
        f'the grader fails on {len(faults) / n:.0%} of the samples: '
        f'{faults[0].item.source}: {_shown(faults[0].grade.errors)}',
      )
    )
  raised = [
    e.grade.errors['python_grader_runtime_error_details']
    for e in episodes
    if 'python_grader_runtime_error_details' in e.grade.errors
  ]
  last = collections.Counter(text.strip().split('\n')[-1] for text in raised).most_common(1)
  if last and last[0][1] > n / 2:
    found.append(
      Finding(
        'no-go',
        f'the grader raises in {last[0][1] / n:.0%} of the samples: '
        f'{last[0][0]}. A field that rows lack, or an answer that it does not '
        'expect: mend the grader',
      )
    )
  for key, way_out in (
    ('sample_parse_error', 'warm up on answers in the right form, or show one in the prompt'),
    (
      'unresponsive_reward_error',
      'no end of the reasoning: raise rollout.max_new_tokens, or check chat.reasoning',
    ),
    ('invalid_variable_error', 'answers lack what the grader reads'),
  ):
    if errors[key] > n / 2 and not faults:
      found.append(Finding('warning', f'{key} in {errors[key] / n:.0%} of the samples: {way_out}'))
  if not found:
    found.append(
      Finding(
        'fine',
        'faults: '
        + (', '.join(f'{key} {count / n:.1%}' for key, count in errors.items()) or 'none'),
      )
    )
  return found, values


def _shown(errors) -> str:
  return '; '.join(key if value is True else str(value) for key, value in errors.items())[:300]


def _tokens(episodes, config):
  lengths = np.array([len(e.sample.tokens) for e in episodes])
  cut = float(np.mean([e.sample.stop_reason == 'length' for e in episodes]))
  values = {'tokens_mean': float(lengths.mean()), 'truncated': cut}
  text = (
    f'{lengths.mean():.0f} tokens a sample, {cut:.0%} cut off at rollout.max_new_tokens='
    f'{config.max_new_tokens}'
  )
  return [Finding('warning' if cut > 0.3 else 'fine', text)], values


# --- the rows -----------------------------------------------------------------------------------


def _leakage(components, train):
  """Held-out rows that are trained on."""
  seen = {validate.prompt_key(example.item) for example in train}
  shared = sum(validate.prompt_key(example.item) in seen for example in components.validation)
  values = {
    'train_rows': len(train),
    'validation_rows': len(components.validation),
    'prompts_in_both': shared,
    'distinct_prompts': len(seen),
  }
  text = (
    f'{shared} of {len(components.validation)} held-out prompts are trained on; {len(train)} rows '
    f'to learn from have {len(seen)} different prompts'
  )
  share = shared / max(len(components.validation), 1)
  return [Finding('no-go' if share > 0.1 else 'warning' if shared else 'fine', text)], values


def _cases(config, components, examples, groups) -> list[reward_hacking.Case]:
  """Returns the rows with the best answer that is known of each: its target's or a sample's."""
  cases = []
  for example, group in zip(examples, groups):
    known = [
      (e.grade.reward, e.output_text)
      for e in group
      if e.grade.reward is not None and e.output_text and not e.grade.errors
    ]
    answer = max(known)[1] if known else None
    if answer is None and config.sft.target:
      text = graders.template.render(config.sft.target, item=example.item.row, sample={})
      answer = components.chat.answer(text, components.chat.encode([text])[0]).output_text
    users = [one for one in example.item.row['messages'] if one['role'] == 'user']
    cases.append(reward_hacking.Case(example.item.row, text_of(users[-1]['content']), answer))
  return cases


def _games(components, cases, episodes, config):
  """Grades answers that know nothing of their case, against the best and worst seen."""
  fields = components.grader.item_fields()
  attacks = reward_hacking.answers(cases, fields and frozenset(_top(field) for field in fields))
  seen = [e.grade.reward for e in episodes if e.grade.reward is not None]
  means = {}
  for name, texts in attacks.items():
    lengths = [len(ids) for ids in components.chat.encode(list(dict.fromkeys(texts)))]
    means[name] = (_mean_grade(components, cases, texts), int(np.median(lengths)))
  possible = [mean for mean, _ in means.values() if mean is not None]
  low, top = (min([*seen, *possible]), max([*seen, 1.0])) if seen else (0.0, 1.0)
  half, policy = (low + top) / 2, float(np.mean(seen)) if seen else low
  found, values = [], {}
  for name, (mean, tokens) in means.items():
    within = tokens <= config.max_new_tokens
    values[name] = {'reward_mean': mean, 'tokens': tokens, 'within_max_new_tokens': within}
    if mean is None or mean <= policy or mean <= low:
      continue
    text = f'{name} gets {mean:.3f} on average, the policy {policy:.3f}'
    if mean > half:
      found.append(
        Finding(
          'no-go' if within else 'warning',
          (
            f'the grader can be gamed: {text}, half marks are {half:.3f}. '
            + (
              'Let it ask for one answer, cap the list, or balance the rows'
              if within
              else f'At {tokens} tokens it does not fit into rollout.max_new_tokens yet'
            )
          ),
        )
      )
    elif within:
      found.append(Finding('warning', f'{text}: the policy may settle for that'))
  if not found:
    found.append(
      Finding(
        'fine',
        f'{len(means)} answers that know nothing of their case get at '
        f'most {max(possible, default=low):.3f}',
      )
    )
  return found, {'constant_answers': values}


def _top(field: str) -> str:
  return field.replace('[', '.').split('.')[0]


def _mean_grade(components, cases, texts) -> float | None:
  made = [graders.make_sample(text, components.response_format) for text in texts]
  grades = graders.grade_many(
    components.grader, [(case.item, sample) for case, (sample, errors) in zip(cases, made) if not errors]
  )
  unread = sum(bool(errors) for _, errors in made)
  rewards = [grade.reward for grade in grades if grade.reward is not None]
  rewards += [components.grader.ungradable_reward] * unread
  return float(np.mean(rewards)) if rewards else None


# --- what it will cost --------------------------------------------------------------------------


def _cost(config, components, policy, sampled, seconds):
  """Steps and hours."""
  found = cost.estimate(
    config, components.chat, policy, sampled, seconds, rows=len(components.validation), mesh=components.mesh
  )
  return [
    Finding(
      'fine',
      f'about {_duration(3600 * found["hours"])} here for '
      f'{config.total_steps()} steps and {found["evaluations"]} evaluations, '
      'compilation not counted',
    )
  ], {'cost': found}


def _duration(seconds) -> str:
  return f'{seconds / 3600:.1f} h' if seconds >= 5400 else f'{seconds / 60:.1f} min'


def _number(value) -> float | None:
  return None if math.isnan(value) else float(value)
