"""The `label_model` grader: a judge model classifies the answer into one of several labels."""

import dataclasses
import functools
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.judges import grading
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.graders.judges.judges import Judges
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelModel:
  """Scores 1.0 if the label that a model chooses is one of passing_labels, otherwise 0.0.

  The `label_model` grader of the OpenAI API, with the sampling_params of score_model. The judge is
  instructed to answer {"steps": [...], "result": one of labels}; another label is the grader fault
  model_grader_parse_error. Everything else is as in ScoreModel.

      LabelModel(name='tone', model='gpt-4.1-2025-04-14', labels=['kind', 'rude'],
                 passing_labels=['kind'],
                 input=[{'role': 'user', 'content': '{{ sample.output_text }}'}])

  Raises:
    ValueError: at construction, listing every problem: a bad template, no key, unknown labels.
  """

  name: str
  model: str
  input: list[dict[str, Any]]
  labels: list[str]
  passing_labels: list[str]
  sampling_params: dict[str, Any] | None = None
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  judges: Judges | None = None
  owns_judges: bool = dataclasses.field(init=False, repr=False)
  tallies: dict[str, base.Tally] = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    grading.finish_init(self)

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    problems = grading.common_problems(fields)
    for name in ('labels', 'passing_labels'):
      if name in fields and not _are_labels(fields[name]):
        problems.append(
          f'{name}={fields[name]!r:.80}, need a list of one or more different strings'
        )
        return problems
    labels = fields.get('labels')
    problems.extend(
      f'passing_labels: {label!r} is not among labels{template.did_you_mean(label, labels)}; '
      f'they are {", ".join(labels)}'
      for label in fields.get('passing_labels', ())
      if labels is not None and label not in labels
    )
    return problems

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order; requests run concurrently."""
    names = ', '.join(f'"{label}"' for label in self.labels)
    return grading.grade(
      self,
      pairs,
      instruction=grading.format_instruction(f'one of {names}'),
      schema=grading.verdict_schema({'type': 'string', 'enum': list(self.labels)}),
      parse=functools.partial(_parse_label, tuple(self.labels)),
      score=lambda label: float(label in self.passing_labels),
    )

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the messages read."""
    return judge_prompt.item_fields(self.input)

  def close(self) -> None:
    """Closes the judges, if this grader made them."""
    grading.close_judges(self)


def _are_labels(value: Any) -> bool:
  return (
    isinstance(value, (list, tuple))
    and len(value) > 0
    and all(isinstance(label, str) and label for label in value)
    and len(set(value)) == len(value)
  )


def _parse_label(labels: tuple[str, ...], text: str) -> str:
  label = grading.parse_result(text)
  if label not in labels:
    raise ValueError(f'result={label!r:.80}, need one of {", ".join(labels)}')
  return label
