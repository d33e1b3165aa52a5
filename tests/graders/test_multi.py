"""multi: the scores and faults of its parts, its problems, and concurrent grading."""

import threading
import time

import pytest

from rft_jax import graders
from rft_jax.types import Grade

EXACT = {
  'type': 'string_check',
  'input': '{{ sample.output_text }}',
  'operation': 'eq',
  'reference': '{{ item.answer }}',
}
GENE = {**EXACT, 'input': '{{ sample.output_json.gene }}'}
TWO = {
  'type': 'multi',
  'name': 'both',
  'graders': {'exact': EXACT, 'gene': GENE},
  'calculate_output': '0.75 * exact + 0.25 * gene',
}


def refusal(grader, **settings) -> str:
  with pytest.raises(ValueError) as caught:
    graders.make(grader, **settings)
  return str(caught.value)


def graded(grader, text, item=None, **settings):
  return graders.grade(
    grader, item={'answer': 'X'} if item is None else item, sample={'output_text': text}, **settings
  )


def test_the_reward_is_the_formula_and_the_components_are_the_parts():
  assert graded(TWO, '{"gene": "X"}') == Grade(0.25, {'exact': 0.0, 'gene': 1.0}, {})
  assert graded({**TWO, 'calculate_output': '1 - exact^2'}, '{"gene": "X"}').reward == 1.0


def test_a_list_of_graders_is_keyed_by_their_names():
  as_list = {**TWO, 'graders': [{**EXACT, 'name': 'exact'}, {**GENE, 'name': 'gene'}]}
  assert graded(as_list, '{"gene": "X"}') == graded(TWO, '{"gene": "X"}')
  assert graders.describe(graders.make(as_list)) == graders.describe(graders.make(TWO))


def test_a_policy_fault_of_a_part_gives_the_ungradable_reward_without_the_formula():
  grade = graded({**TWO, 'calculate_output': '1 - gene'}, 'X', ungradable_reward=-1.0)
  assert grade.reward == -1.0 and grade.components == {'exact': 1.0, 'gene': None}
  assert grade.errors['sample_parse_error'] is True
  assert grade.errors['sample_parse_error_details'].startswith('gene: ')


def test_a_grader_fault_of_a_part_gives_no_reward_even_with_a_policy_fault():
  absent = {**EXACT, 'reference': '{{ item.absent }}'}
  grade = graded({**TWO, 'graders': {'exact': absent, 'gene': GENE}}, 'no json')
  assert grade.reward is None and grade.components == {'exact': None, 'gene': None}
  assert grade.errors['invalid_variable_error'] is True
  assert grade.errors['sample_parse_error'] is True


def test_the_same_error_of_two_parts_keeps_both_details():
  absent = {**EXACT, 'reference': '{{ item.absent }}'}
  errors = graded({**TWO, 'graders': {'exact': absent, 'gene': absent}}, 'X').errors
  first, second = errors['invalid_variable_error_details'].split('\n')
  assert first.startswith('exact: item.absent') and second.startswith('gene: item.absent')


def test_a_formula_without_a_value_is_a_grader_fault_that_keeps_the_scores():
  grade = graded({**TWO, 'calculate_output': 'exact / gene'}, '{"gene": "Y"}')
  assert grade.reward is None and grade.components == {'exact': 0.0, 'gene': 0.0}
  assert grade.errors['formula_parse_error'] is True
  assert '0.0 / 0.0' in grade.errors['formula_parse_error_details']


def test_a_score_outside_0_and_1_is_legal():
  assert graded({**TWO, 'calculate_output': '10 * exact - 5'}, '{"gene": "X"}').reward == -5.0


def test_all_problems_are_listed_with_their_path():
  message = refusal(
    {
      'type': 'multi',
      'name': 'both',
      'calculate_output': 'exact + gnee',
      'colour': 'red',
      'graders': {
        'exact': {**EXACT, 'operation': 'equals'},
        'gene': {**GENE, 'inptu': 'x'},
        'max': EXACT,
        'my grader': EXACT,
        'inner': {**TWO, 'name': 'inner'},
        'n': 3,
      },
    }
  )
  for words in (
    "unknown field 'colour'",
    "graders.exact.operation='equals'",
    "graders.gene: unknown field 'inptu' (did you mean 'input'?)",
    "graders.max: the name 'max' is a function",
    "'my grader' cannot be used",
    'graders.inner: a multi cannot be inside a multi',
    'graders.n is a number',
    "'gnee' at character 9 is not a grader (did you mean 'gene'?)",
  ):
    assert words in message


@pytest.mark.parametrize(
  'parts, words',
  [
    ([], 'graders is empty'),
    ({}, 'graders is empty'),
    ('x', 'graders is a string'),
    ([EXACT], "graders[0]: field 'name' is missing"),
    ([{**EXACT, 'name': 'a'}] * 2, "graders[1]: the name 'a' is used"),
    ({'a': {'type': 'stringcheck'}}, "graders.a.type='stringcheck' is unknown"),
    ({'a': {}}, "graders.a: field 'type' is missing"),
  ],
)
def test_invalid_graders_are_refused(parts, words):
  assert words in refusal({**TWO, 'graders': parts})


def test_describe_is_the_normal_form_of_the_parts_too():
  described = graders.describe(
    graders.make({**TWO, 'graders': {'exact': {**EXACT, 'operation': 'neq'}, 'gene': GENE}})
  )
  assert described['graders']['exact'] == {**EXACT, 'name': 'exact', 'operation': 'ne'}
  assert described == graders.describe(graders.make(described))


def test_item_fields_are_those_of_the_parts_that_know_them():
  source = 'def grade(sample, item):\n  return 1.0'
  program = {'type': 'python', 'source': source}
  with_program = graders.make({**TWO, 'graders': {'exact': EXACT, 'gene': program}})
  alone = graders.make({**TWO, 'graders': {'exact': program}, 'calculate_output': 'exact'})
  try:
    assert graders.make(TWO).item_fields() == {'answer'}
    assert with_program.item_fields() == {'answer'} and alone.item_fields() is None
  finally:
    with_program.close()
    alone.close()


def test_the_parts_have_the_settings_of_the_run():
  source = 'def grade(sample, item):\n  return 1.0'
  message = refusal(
    {**TWO, 'graders': {'exact': EXACT, 'gene': {'type': 'python', 'source': source}}},
    sandbox=graders.SandboxConfig(workers=0),
  )
  assert 'graders.gene: sandbox.workers=0' in message


class Slow:
  """A grader with many() that returns only when every grader of the barrier is in many()."""

  def __init__(self, name, barrier, score):
    self.name, self.barrier, self.score = name, barrier, score
    self.closed, self.calls = False, 0

  def many(self, pairs):
    self.calls += 1
    self.barrier.wait(timeout=10)
    time.sleep(0.01)
    return [Grade(self.score, {self.name: self.score}, {})] * len(pairs)

  def close(self):
    self.closed = True


class Maker:
  """A make_part that makes Slow graders."""

  def __init__(self):
    self.barrier, self.parts = threading.Barrier(2), {}

  def problems(self, _):
    return []

  def __call__(self, grader):
    if grader['type'] == 'broken':
      raise RuntimeError('no worker here')
    part = self.parts[grader['name']] = Slow(grader['name'], self.barrier, grader['score'])
    return part


def multi_of(maker, **parts):
  return graders.GRADERS['multi'](
    name='m', graders=parts, calculate_output='a - b', make_part=maker
  )


def test_a_part_gets_all_answers_in_one_call_and_parts_work_concurrently():
  maker = Maker()
  grader = multi_of(maker, a={'type': 'slow', 'score': 3.0}, b={'type': 'slow', 'score': 1.0})
  assert [grade.reward for grade in graders.grade_many(grader, [({}, {})] * 5)] == [2.0] * 5
  assert [part.calls for part in maker.parts.values()] == [1, 1]
  counts = grader.tallies['a'].take()
  assert counts['grades'] == 5 and counts['seconds'] >= 0.01
  grader.close()
  assert all(part.closed for part in maker.parts.values())


def test_if_a_part_cannot_be_started_the_parts_before_it_are_closed():
  maker = Maker()
  with pytest.raises(ValueError, match='graders.b: no worker here'):
    multi_of(maker, a={'type': 'slow', 'score': 3.0}, b={'type': 'broken'})
  assert maker.parts['a'].closed


def test_tallies_count_the_errors_of_each_part():
  grader = graders.make(TWO)
  graders.grade_many(
    grader, [({'answer': 'X'}, {'output_text': 'X'}), ({}, {'output_text': 'X'})], retries=0
  )
  exact, gene = grader.tallies['exact'].take(), grader.tallies['gene'].take()
  assert exact['grades'] == gene['grades'] == 2
  assert exact['errors/invalid_variable_error'] == 1 and 'errors/sample_parse_error' not in exact
  assert gene['errors/invalid_variable_error'] == gene['errors/sample_parse_error'] == 1
