"""The `reward_model` grader: a model trained on preferences puts a number on an answer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.types import Grade

_KEYS = ('invalid_variable_error', 'invalid_variable_error_details')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RewardModel:
  """Scores by the number that a reward model of this run gives, as it comes.

  Our own type, after the API's graders. The model is a callable that the run holds under a name:
  [(prompt messages, answer)] -> [float]; a run takes the name for a Hugging Face directory or hub
  id. Without `input` it is given the row's messages and sample.output_text; with it, message
  templates of text whose last has the role assistant, and is the answer. A number that is not
  finite, a text (why there is none), and whatever the callable raises, is the grader
  fault other_error.

      {'type': 'reward_model', 'name': 'preference', 'model': 'runs/reward/export'}

  Raises:
    ValueError: at construction, listing every problem: a model that the run does not hold.
  """

  name: str
  model: str
  input: list[dict[str, Any]] | None = None
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  reward_models: dict[str, Callable] | None = None

  waits_for_all = True  # it computes where the policy samples, and in an order of its own

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    found = base.threshold_problems(given)
    if 'model' in given:
      found.extend(_model_problems(given['model'], given.get('reward_models') or {}))
    if given.get('input') is not None:
      found.extend(_input_problems(given['input']))
    return found

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, all in one call of the model."""
    grades: list[Grade | None] = [None] * len(pairs)
    asked, places = [], []
    for place, (item, sample) in enumerate(pairs):
      try:
        asked.append(self._asked(item, sample))
        places.append(place)
      except template.Fault as fault:
        grades[place] = base.faulty(self, fault)
    for place, score in zip(places, self._scores(asked) if asked else ()):
      grades[place] = self._grade(score)
    return grades

  def _asked(self, item, sample) -> tuple[list[dict[str, Any]], str]:
    """Returns (prompt messages, answer) of one answer; raises template.Fault."""
    if self.input is not None:
      texts = iter(
        template.render_all(judge_prompt.templates(self.input), item=item, sample=sample)
      )
      *prompt, answer = [
        {'role': message['role'], 'content': judge_prompt.content(message, texts)}
        for message in self.input
      ]
      return prompt, answer['content']
    if not isinstance(item.get('messages'), list):
      raise template.Fault(
        dict(zip(_KEYS, (True, 'item.messages: the row has none'))), of_policy=False
      )
    return item['messages'], template.render('{{ sample.output_text }}', item=item, sample=sample)

  def _scores(self, asked) -> list:
    """Returns a score for each, or the reason why there is none."""
    try:
      scores = list(self.reward_models[self.model](asked))
    except Exception as error:  # foreign code: the fault is counted and shown
      return [f'{type(error).__name__}: {error}'] * len(asked)
    if len(scores) != len(asked):
      return [f'{len(scores)} scores for {len(asked)} answers'] * len(asked)
    return scores

  def _grade(self, score) -> Grade:
    try:
      value = math.nan if isinstance(score, str) else float(score)
    except (TypeError, ValueError, OverflowError):
      value = math.nan
    if not math.isfinite(value):
      return base.grader_fault(
        self,
        {
          'other_error': True,
          'other_error_details': f'reward model {self.model}: {score}, need a finite number',
        },
      )
    return Grade(value, {self.name: value}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that make its prompt."""
    return frozenset({'messages'}) if self.input is None else judge_prompt.item_fields(self.input)

  def close(self) -> None:
    """Does nothing: the models belong to the run."""


def named_in(grader: Any) -> list[str]:
  """Returns the models that a grader's JSON names for its reward_model graders, each once."""
  found = []
  if isinstance(grader, dict):
    if grader.get('type') == 'reward_model' and isinstance(grader.get('model'), str):
      found.append(grader['model'])
    found += [name for value in grader.values() for name in named_in(value)]
  elif isinstance(grader, (list, tuple)):
    found = [name for value in grader for name in named_in(value)]
  return list(dict.fromkeys(found))


def _model_problems(model: Any, known: dict[str, Callable]) -> list[str]:
  if isinstance(model, str) and model in known:
    return []
  has = f'it holds {", ".join(known)}' if known else 'it holds none'
  return [
    f'model={model!r}{template.did_you_mean(model, known)}: no reward model of this run has '
    f'that name, {has}; pass reward_models={{{model!r}: score}}, where score takes '
    '[(prompt messages, answer)] and returns a list of floats'
  ]


def _input_problems(messages: Any) -> list[str]:
  if found := judge_prompt.problems(messages):
    return found
  found = []
  if judge_prompt.kinds(messages) - set(judge_prompt.TEXTS):
    found.append('input: a reward model reads text alone, need no images or audio')
  if messages[-1]['role'] != 'assistant' or len(messages) < 2:
    found.append(
      f'input: ends with the role {messages[-1]["role"]}, need a prompt and then a '
      'message of the role assistant: the answer'
    )
  return found
