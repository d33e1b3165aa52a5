"""What score_model and label_model share: sampling parameters, reading a verdict, the grading."""

import json
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.graders.judges.judges import JudgeConfig, Judges, Reply, Request
from rft_jax.types import Grade

EFFORTS = ('none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max')
ALIASES = {'max_completion_tokens': 'max_completions_tokens'}  # the API has the odd spelling
_number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
_whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
SAMPLING = {  # name: (test, need)
  'seed': (_whole, 'a whole number'),
  'top_p': (lambda value: _number(value) and 0 < value <= 1, 'a number > 0 and <= 1'),
  'temperature': (lambda value: _number(value) and 0 <= value <= 2, 'a number from 0 to 2'),
  'max_completions_tokens': (lambda value: _whole(value) and value >= 1, 'a whole number >= 1'),
  'reasoning_effort': (lambda value: value in EFFORTS, f'one of {", ".join(EFFORTS)}'),
}


def verdict_schema(result: dict[str, Any]) -> dict[str, Any]:
  """Returns the JSON Schema of a verdict whose result has the schema `result`.

  The steps come first: they are written before the result, which then follows from them.
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


def form(result: str) -> str:
  """Returns the sentence that tells a judge in which form to answer."""
  return (
    'Answer with one JSON object and nothing else: {"steps": [{"description": what you look '
    'at, "conclusion": what follows from it}, ...], "result": ' + result + '}.'
  )


def read_result(text: str) -> Any:
  """Returns `result` of the last JSON object in text that has one.

  The last, as a judge that thinks aloud may quote others before it gives its own.

  Raises:
    ValueError: there is none.
  """
  decoder, found, position = json.JSONDecoder(), [], text.find('{')
  while position >= 0:
    try:
      value, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
      value, position = None, position + 1
    if isinstance(value, dict) and 'result' in value:
      found.append(value['result'])
    position = text.find('{', position)
  if not found:
    raise ValueError(f'no JSON object with a result in {text[:200]!r}')
  return found[-1]


def close(grader) -> None:
  """Closes the judges that the grader made itself; others belong to the run."""
  if grader.owns_judges:
    grader.judges.close()


def common_problems(given: dict[str, Any]) -> list[str]:
  """Returns what is wrong with the fields that both judges have."""
  found, model = base.threshold_problems(given), given.get('model', 'any')
  if not isinstance(model, str) or not model:
    found.append(f'model={model!r}, need the name of a model')
    model = 'any'
  kinds = frozenset()
  if 'input' in given:
    problems = judge_prompt.problems(given['input'])
    found.extend(problems)
    kinds = frozenset() if problems else judge_prompt.kinds(given['input'])
  found.extend(_sampling_problems(given.get('sampling_params')))
  return found + (given.get('judges') or Judges(JudgeConfig())).problems(model, kinds)


def normal_sampling(params: dict[str, Any] | None) -> dict[str, Any] | None:
  """Returns sampling_params in the API's spelling, without nulls; None if nothing is left."""
  return {
    ALIASES.get(key, key): value for key, value in (params or {}).items() if value is not None
  } or None


def settle(grader) -> None:
  """Puts the fields of a new grader into their normal form and makes what it works with."""
  if any(message['role'] == 'system' for message in grader.input):
    warnings.warn(
      f"grader {grader.name}: the role 'system' is taken as 'developer', as the API calls it",
      stacklevel=4,
    )
  made = {
    'input': judge_prompt.normal(grader.input),
    'sampling_params': normal_sampling(grader.sampling_params),
    'judges': grader.judges or Judges(JudgeConfig()),
    'owns_judges': not grader.judges,
    'tallies': {grader.name: base.Tally()},
  }
  for field, value in made.items():
    object.__setattr__(grader, field, value)


def grade(
  grader,
  pairs: list[tuple[dict, dict]],
  *,
  form: str,
  schema: dict[str, Any],
  read: Callable[[str], Any],
  score: Callable[[Any], float],
) -> list[Grade]:
  """Returns the Grade of each (item, sample), counted in the grader's tally.

  Args:
    grader: a ScoreModel or LabelModel.
    form: how the judge is to answer, in words.
    schema: how, as JSON Schema.
    read: what the text of an answer says; ValueError if nothing.
    score: the score of what read returns.
  """
  began, tally = time.perf_counter(), grader.tallies[grader.name]
  grades: list[Grade | None] = [None] * len(pairs)
  requests, places = [], []
  for place, (item, sample) in enumerate(pairs):
    try:
      messages = judge_prompt.render(grader.input, form, item=item, sample=sample)
    except template.Fault as fault:
      grades[place] = base.faulty(grader, fault)
    else:
      places.append(place)
      requests.append(Request(grader.model, messages, grader.sampling_params or {}, schema, read))
  for place, reply in zip(places, grader.judges.ask(requests)):
    grades[place] = _grade(grader, reply, score)
    if reply.usage:
      tally.add_usage(reply.usage, reply.model)
  for each in grades:
    tally.add(each.errors, (time.perf_counter() - began) / len(pairs))
  return grades


def _grade(grader, reply: Reply, score) -> Grade:
  if reply.errors:
    return base.grader_fault(grader, reply.errors)
  value = score(reply.value)
  return Grade(value, {grader.name: value}, {})


def finite_number(value: Any) -> float:
  """Returns a JSON number as a float; raises ValueError if it is none."""
  try:
    if _number(value) and math.isfinite(value):
      return float(value)
  except OverflowError:  # an integer beyond every float
    pass
  raise ValueError(f'result={value!r:.80}, need a finite number')


def _sampling_problems(params: Any) -> list[str]:
  if params is None:
    return []
  if not isinstance(params, dict):
    return [f'sampling_params is {template.kind(params)}, need an object']
  found = [
    f'sampling_params.{name} is given twice, as {alias} too; need one'
    for alias, name in ALIASES.items()
    if alias in params and name in params
  ]
  for key, value in params.items():
    name = ALIASES.get(key, key)
    if name not in SAMPLING:
      found.append(
        f'sampling_params: unknown field {key!r}{template.did_you_mean(key, SAMPLING)}, '
        f'need only {", ".join(SAMPLING)}'
      )
    elif value is not None and not SAMPLING[name][0](value):
      found.append(f'sampling_params.{key}={value!r}, need {SAMPLING[name][1]}')
  return found
