"""A grader type added from outside the package with one line: graders.GRADERS['mine'] = Mine."""

import dataclasses
import json
from typing import Any

import pytest

from rft_jax import graders
from rft_jax.graders import base, openai_api, template
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True)
class VowelShare:
  """Scores the share of vowels in a rendered template; a minimal grader outside the package."""

  name: str
  input: str
  vowels: str = 'aeiou'
  pass_threshold: float | None = None
  ungradable_reward: float = 0.0  # a setting of the run, set by make()

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    problems = base.template_problems(fields, ('input',))
    if not fields.get('vowels', 'a'):
      problems.append("vowels='', need at least one letter")
    return problems + base.threshold_problems(fields)

  def __call__(self, item, sample) -> Grade:
    try:
      text = template.render(self.input, item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    score = sum(letter in self.vowels for letter in text) / max(len(text), 1)
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    return template.fields(self.input)

  def close(self) -> None:
    pass


VOWELS = {'type': 'vowel_share', 'name': 'vowels', 'input': '{{ sample.output_text }}'}


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
  monkeypatch.setitem(graders.GRADERS, 'vowel_share', VowelShare)


def test_a_grader_of_the_new_type_is_made_from_json_and_grades(tmp_path):
  path = tmp_path / 'grader.json'
  path.write_text(json.dumps(VOWELS))
  for grader in (VOWELS, path, graders.make(VOWELS)):
    grade = graders.grade(grader, item={}, sample={'output_text': 'aeix'})
    assert grade == Grade(0.75, {'vowels': 0.75}, {})


def test_it_gets_the_settings_of_the_run_and_the_normal_form():
  grader = graders.make(VOWELS, ungradable_reward=-1.0)
  assert grader({}, {}).reward == -1.0
  assert graders.describe(grader) == {**VOWELS, 'vowels': 'aeiou'}
  assert graders.grader_infos(grader) == [('vowels', 'vowel_share', None)]


def test_it_may_be_a_part_of_a_multi_grader():
  exact = {
    'type': 'string_check',
    'input': '{{ sample.output_text }}',
    'operation': 'eq',
    'reference': '{{ item.answer }}',
  }
  grader = graders.make(
    {
      'type': 'multi',
      'name': 'sum',
      'graders': {'vowels': VOWELS, 'exact': exact},
      'calculate_output': 'vowels + exact',
    }
  )
  grade = grader({'answer': 'ab'}, {'output_text': 'ab'})
  assert grade == Grade(1.5, {'vowels': 0.5, 'exact': 1.0}, {})
  assert [info.type for info in graders.grader_infos(grader)] == ['vowel_share', 'string_check']


def test_its_problems_are_listed_like_those_of_any_type():
  with pytest.raises(ValueError) as caught:
    graders.make({**VOWELS, 'vowels': '', 'inptu': 'x', 'pass_threshold': 'x'})
  for words in ("vowels=''", "unknown field 'inptu'", 'pass_threshold'):
    assert words in str(caught.value)
  with pytest.raises(ValueError, match='or of our own .*vowel_share'):
    graders.make({'type': 'vowels'})
  with pytest.raises(ValueError, match="did you mean 'vowel_share'"):
    graders.make({'type': 'vowel_shares'})


def test_openai_responses_name_the_new_type():
  response = openai_api.run(graders.make(VOWELS), 'ab')
  assert response['reward'] == 0.5 and response['metadata']['type'] == 'vowel_share'
