"""The `reward_model` grader: scores the answer with a reward model trained on preferences."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RewardModel:
  """Scores by the unscaled number of a reward model of the run.

  Not a type of the OpenAI API. The model is a callable that the run registers under a name:
  [(prompt messages, answer)] -> [float]; in a run the name is a Hugging Face directory or hub id.
  Without `input` the model scores the row's messages with sample.output_text. With it, `input` is a
  list of text message templates; the last has the role assistant and is the answer. A number that
  is not finite, a string (the reason why there is no number) and an exception of the callable are
  the grader fault other_error.

      {'type': 'reward_model', 'name': 'preference', 'model': 'runs/reward/export'}

  Raises:
    ValueError: at construction, listing every problem: a model that the run has not registered.
  """

  name: str
  model: str
  input: list[dict[str, Any]] | None = None
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  reward_models: dict[str, Callable] | None = None

  waits_for_all = True  # it computes on the device that samples, on sorted answers

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    problems = base.threshold_problems(fields)
    if 'model' in fields:
      problems.extend(_model_problems(fields['model'], fields.get('reward_models') or {}))
    if fields.get('input') is not None:
      problems.extend(_input_problems(fields['input']))
    return problems

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, all in one call of the model."""
    grades: dict[int, Grade] = {}  # by index into pairs
    conversations, indices = [], []
    for index, (item, sample) in enumerate(pairs):
      try:
        conversations.append(self._prompt_and_answer(item, sample))
        indices.append(index)
      except template.Fault as fault:
        grades[index] = base.template_fault(self, fault)
    for index, score in zip(indices, self._scores(conversations) if conversations else ()):
      grades[index] = self._grade(score)
    return [grades[index] for index in range(len(pairs))]

  def _prompt_and_answer(self, item, sample) -> tuple[list[dict[str, Any]], str]:
    """Returns (prompt messages, answer) of one sample; raises template.Fault."""
    if self.input is not None:
      texts = iter(
        template.render_all(judge_prompt.templates(self.input), item=item, sample=sample)
      )
      *prompt, answer = [
        {'role': message['role'], 'content': judge_prompt.rendered_content(message, texts)}
        for message in self.input
      ]
      return prompt, answer['content']
    if not isinstance(item.get('messages'), list):
      raise template.Fault(
        {
          'invalid_variable_error': True,
          'invalid_variable_error_details': 'item.messages: the row has none',
        },
        is_policy_fault=False,
      )
    return item['messages'], template.render('{{ sample.output_text }}', item=item, sample=sample)

  def _scores(self, conversations) -> list:
    """Returns a score for each conversation, or a string with the reason why there is none."""
    assert self.reward_models is not None  # problems() requires that it has the model
    try:
      scores = list(self.reward_models[self.model](conversations))
    except Exception as error:  # user code: the fault is counted and reported
      return [f'{type(error).__name__}: {error}'] * len(conversations)
    if len(scores) != len(conversations):
      return [f'{len(scores)} scores for {len(conversations)} answers'] * len(conversations)
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
    """Returns the paths of item that its prompt reads."""
    return frozenset({'messages'}) if self.input is None else judge_prompt.item_fields(self.input)

  def close(self) -> None:
    """Does nothing: the run closes its reward models."""


def reward_model_names(grader: Any) -> list[str]:
  """Returns the distinct models of the reward_model graders in a grader's JSON."""
  names = []
  if isinstance(grader, dict):
    if grader.get('type') == 'reward_model' and isinstance(grader.get('model'), str):
      names.append(grader['model'])
    names += [name for value in grader.values() for name in reward_model_names(value)]
  elif isinstance(grader, (list, tuple)):
    names = [name for value in grader for name in reward_model_names(value)]
  return list(dict.fromkeys(names))


def _model_problems(model: Any, reward_models: dict[str, Callable]) -> list[str]:
  if isinstance(model, str) and model in reward_models:
    return []
  names = f'it has {", ".join(reward_models)}' if reward_models else 'it has none'
  return [
    f'model={model!r}{template.did_you_mean(model, reward_models)}: no reward model of this run '
    f'has that name, {names}; pass reward_models={{{model!r}: score}}, where score takes '
    '[(prompt messages, answer)] and returns a list of floats'
  ]


def _input_problems(messages: Any) -> list[str]:
  if problems := judge_prompt.problems(messages):
    return problems
  if judge_prompt.part_types(messages) - set(judge_prompt.TEXT_TYPES):
    problems.append('input: a reward model reads only text; remove images and audio')
  if messages[-1]['role'] != 'assistant' or len(messages) < 2:
    problems.append(
      f'input: ends with the role {messages[-1]["role"]}, need a prompt and then a '
      'message with the role assistant, the answer'
    )
  return problems
