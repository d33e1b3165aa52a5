"""Shared by score_model and label_model: sampling_params, verdict schema, parsing, grading."""

import json
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.judges.judges import Judges
from rft_jax.graders.judges.protocol import JudgeRequest, JudgeVerdict
from rft_jax.types import Grade

REASONING_EFFORTS = ('none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max')
ALIASES = {'max_completion_tokens': 'max_completions_tokens'}  # the API's spelling is the second
_is_number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
_is_integer = lambda value: isinstance(value, int) and not isinstance(value, bool)
SAMPLING_PARAMS = {  # name: (predicate, requirement in words)
  'seed': (_is_integer, 'a whole number'),
  'top_p': (lambda value: _is_number(value) and 0 < value <= 1, 'a number > 0 and <= 1'),
  'temperature': (lambda value: _is_number(value) and 0 <= value <= 2, 'a number from 0 to 2'),
  'max_completions_tokens': (
    lambda value: _is_integer(value) and value >= 1,
    'a whole number >= 1',
  ),
  'reasoning_effort': (
    lambda value: value in REASONING_EFFORTS,
    f'one of {", ".join(REASONING_EFFORTS)}',
  ),
}


def verdict_schema(result: dict[str, Any]) -> dict[str, Any]:
  """Returns the JSON Schema of a verdict whose `result` has the schema result.

  The steps come first, so that the judge writes its reasoning before the result.
  """
  text = {'type': 'string'}
  step = {
    'type': 'object',
    'properties': {'description': text, 'conclusion': text},
    'required': ['description', 'conclusion'],
    'additionalProperties': False,
  }
  return {
    'type': 'object',
    'properties': {'steps': {'type': 'array', 'items': step}, 'result': result},
    'required': ['steps', 'result'],
    'additionalProperties': False,
  }


def format_instruction(result: str) -> str:
  """Returns the sentence of the prompt that states the JSON form of the answer."""
  return (
    'Answer with one JSON object and nothing else: {"steps": [{"description": what you look '
    'at, "conclusion": what follows from it}, ...], "result": ' + result + '}.'
  )


def parse_result(text: str) -> Any:
  """Returns `result` of the last JSON object in text that has one.

  The last, because reasoning before the final answer may quote other verdicts.

  Raises:
    ValueError: there is none.
  """
  decoder, results, position = json.JSONDecoder(), [], text.find('{')
  while position >= 0:
    try:
      value, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
      value, position = None, position + 1
    if isinstance(value, dict) and 'result' in value:
      results.append(value['result'])
    position = text.find('{', position)
  if not results:
    raise ValueError(f'no JSON object with a result in {text[:200]!r}')
  return results[-1]


def close_judges(grader) -> None:
  """Closes the judges if the grader created them; others belong to the run."""
  if grader.owns_judges:
    grader.judges.close()


def common_problems(fields: dict[str, Any]) -> list[str]:
  """Returns what is wrong with the fields that score_model and label_model share."""
  problems, model = base.threshold_problems(fields), fields.get('model', 'any')
  if not isinstance(model, str) or not model:
    problems.append(f'model={model!r}, need the name of a model')
    model = 'any'
  part_types: frozenset[str] = frozenset()
  if 'input' in fields:
    input_problems = judge_prompt.problems(fields['input'])
    problems.extend(input_problems)
    part_types = frozenset() if input_problems else judge_prompt.part_types(fields['input'])
  problems.extend(_sampling_problems(fields.get('sampling_params')))
  judges = fields.get('judges') or Judges(JudgeConfig())
  return problems + judges.problems(model, part_types)


def normalized_sampling_params(params: dict[str, Any] | None) -> dict[str, Any] | None:
  """Returns sampling_params in the API's spelling, without nulls; None if none remain."""
  return {
    ALIASES.get(key, key): value for key, value in (params or {}).items() if value is not None
  } or None


def finish_init(grader) -> None:
  """Normalizes the fields of a new grader and sets judges, owns_judges and tallies."""
  if any(message['role'] == 'system' for message in grader.input):
    warnings.warn(
      f"grader {grader.name}: the role 'system' is taken as 'developer', as the API calls it",
      stacklevel=4,
    )
  values = {
    'input': judge_prompt.normalized(grader.input),
    'sampling_params': normalized_sampling_params(grader.sampling_params),
    'judges': grader.judges or Judges(JudgeConfig()),
    'owns_judges': not grader.judges,
    'tallies': {grader.name: base.Tally()},
  }
  for field, value in values.items():
    object.__setattr__(grader, field, value)


def grade(
  grader,
  pairs: list[tuple[dict, dict]],
  *,
  instruction: str,
  schema: dict[str, Any],
  parse: Callable[[str], Any],
  score: Callable[[Any], float],
) -> list[Grade]:
  """Returns the Grade of each (item, sample), counted in the grader's tally.

  Args:
    grader: a ScoreModel or LabelModel.
    instruction: the form of the judge's answer in words, from format_instruction.
    schema: the same as JSON Schema.
    parse: text of an answer -> value; raises ValueError if it holds no verdict.
    score: value -> score.
  """
  start, tally = time.perf_counter(), grader.tallies[grader.name]
  grades: dict[int, Grade] = {}  # by index into pairs
  requests, indices = [], []
  for index, (item, sample) in enumerate(pairs):
    try:
      messages = judge_prompt.render(grader.input, instruction, item=item, sample=sample)
    except template.Fault as fault:
      grades[index] = base.template_fault(grader, fault)
    else:
      indices.append(index)
      requests.append(
        JudgeRequest(grader.model, messages, grader.sampling_params or {}, schema, parse)
      )
  for index, verdict in zip(indices, grader.judges.verdicts(requests)):
    grades[index] = _grade(grader, verdict, score)
    if verdict.usage:
      tally.add_usage(verdict.usage, verdict.model)
  ordered = [grades[index] for index in range(len(pairs))]
  for graded in ordered:
    tally.add(graded.errors, (time.perf_counter() - start) / len(pairs))
  return ordered


def _grade(grader, verdict: JudgeVerdict, score) -> Grade:
  if verdict.errors:
    return base.grader_fault(grader, verdict.errors)
  value = score(verdict.value)
  return Grade(value, {grader.name: value}, {})


def finite_number(value: Any) -> float:
  """Returns a JSON number as a float; raises ValueError if it is not a finite number."""
  try:
    if _is_number(value) and math.isfinite(value):
      return float(value)
  except OverflowError:  # an integer beyond the range of floats
    pass
  raise ValueError(f'result={value!r:.80}, need a finite number')


def _sampling_problems(params: Any) -> list[str]:
  if params is None:
    return []
  if not isinstance(params, dict):
    return [f'sampling_params is {template.json_type(params)}, need an object']
  problems = [
    f'sampling_params.{name} is set twice, also as {alias}; need one of the two'
    for alias, name in ALIASES.items()
    if alias in params and name in params
  ]
  for key, value in params.items():
    name = ALIASES.get(key, key)
    if name not in SAMPLING_PARAMS:
      problems.append(
        f'sampling_params: unknown field {key!r}{template.did_you_mean(key, SAMPLING_PARAMS)}, '
        f'need only {", ".join(SAMPLING_PARAMS)}'
      )
    elif value is not None and not SAMPLING_PARAMS[name][0](value):
      problems.append(f'sampling_params.{key}={value!r}, need {SAMPLING_PARAMS[name][1]}')
  return problems
