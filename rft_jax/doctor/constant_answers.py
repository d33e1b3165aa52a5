"""Grades case-independent answers: what a policy could get without reading the case."""

import numpy as np

from rft_jax import graders
from rft_jax.data.chat_templates import text_of
from rft_jax.doctor import reward_hacking
from rft_jax.doctor.findings import Finding


def cases(config, components, examples, groups) -> list[reward_hacking.Case]:
  """Returns the rows with the best answer known of each: of a sample, or else its target's."""
  rows = []
  for example, group in zip(examples, groups):
    graded = [
      (e.grade.reward, e.output_text)
      for e in group
      if e.grade.reward is not None and e.output_text and not e.grade.errors
    ]
    answer = max(graded)[1] if graded else None
    if answer is None and config.sft.target:
      text = graders.template.render(config.sft.target, item=example.item.row, sample={})
      answer = components.chat.parse_completion(text, components.chat.encode([text])[0]).output_text
    user_messages = [
      message for message in example.item.row['messages'] if message['role'] == 'user'
    ]
    prompt = text_of(user_messages[-1]['content'])
    rows.append(reward_hacking.Case(example.item.row, prompt, answer))
  return rows


def examine(components, rows: list[reward_hacking.Case], episodes, config):
  """Returns (findings, values): the mean grade of each case-independent answer.

  It is compared with the policy's mean, and with the middle between the lowest and highest grade.

  Args:
    rows: from cases.
    episodes: the policy's samples.
    config: the RolloutConfig.
  """
  fields = components.grader.item_fields()
  reference_fields = fields and frozenset(_top_level(field) for field in fields)
  means = {}  # attack -> (mean grade, tokens)
  for name, texts in reward_hacking.answers(rows, reference_fields).items():
    lengths = [len(ids) for ids in components.chat.encode(list(dict.fromkeys(texts)))]
    means[name] = (_mean_grade(components, rows, texts), int(np.median(lengths)))
  rewards = [e.grade.reward for e in episodes if e.grade.reward is not None]
  attack_means = [mean for mean, _ in means.values() if mean is not None]
  low, top = 0.0, 1.0
  if rewards:
    low, top = min([*rewards, *attack_means]), max([*rewards, 1.0])
  half, policy = (low + top) / 2, float(np.mean(rewards)) if rewards else low
  findings, values = [], {}
  for name, (mean, tokens) in means.items():
    fits = tokens <= config.max_new_tokens
    values[name] = {'reward_mean': mean, 'tokens': tokens, 'within_max_new_tokens': fits}
    if mean is None or mean <= policy or mean <= low:
      continue
    text = f'{name} gets {mean:.3f} on average, the policy {policy:.3f}'
    if mean > half:
      remedy = (
        'Let it ask for one answer, cap the list, or balance the rows'
        if fits
        else f'At {tokens} tokens it does not fit into rollout.max_new_tokens yet'
      )
      findings.append(
        Finding(
          'no-go' if fits else 'warning',
          f'reward hacking is possible: {text}, half of the full grade is {half:.3f}. {remedy}',
        )
      )
    elif fits:
      findings.append(Finding('warning', f'{text}: the policy may settle for this answer'))
  if not findings:
    most = max(attack_means, default=low)
    text = f'{len(means)} case-independent answers get at most {most:.3f}'
    findings.append(Finding('fine', text))
  return findings, {'constant_answers': values}


def _top_level(field: str) -> str:
  return field.replace('[', '.').split('.')[0]


def _mean_grade(components, rows, texts) -> float | None:
  parsed = [graders.make_sample(text, components.response_format) for text in texts]
  grades = graders.grade_many(
    components.grader,
    [(case.item, sample) for case, (sample, errors) in zip(rows, parsed) if not errors],
  )
  unparsable = sum(bool(errors) for _, errors in parsed)
  rewards = [grade.reward for grade in grades if grade.reward is not None]
  rewards += [components.grader.ungradable_reward] * unparsable
  return float(np.mean(rewards)) if rewards else None
