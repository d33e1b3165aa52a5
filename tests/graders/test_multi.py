"""multi: its formulas, and what becomes of the scores and faults of its graders."""

import math
import operator
import threading
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from rft_jax import graders
from rft_jax.graders import formula
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


def value(text, **names):
  return formula.evaluate(formula.parse(text, names), names)


def refusal(grader, **settings) -> str:
  with pytest.raises(ValueError) as caught:
    graders.make(grader, **settings)
  return str(caught.value)


# ------------------------------------------------------------------ formulas


@pytest.mark.parametrize(
  'text, wanted',
  [
    ('-2^2', -4.0),
    ('(-2)^2', 4.0),
    ('2^-1', 0.5),
    ('2^3^2', 512.0),
    ('2**3', 8.0),
    ('--3', 3.0),
    ('1 - 2 - 3', -4.0),
    ('8 / 4 / 2', 1.0),
    ('8 / 4 * 2', 4.0),
    ('2 + 3 * 4', 14.0),
    ('(2 + 3) * 4', 20.0),
    ('2 * -3', -6.0),
    ('+5', 5.0),
    ('.5 + 1e-3 + 1.', 1.501),
    ('min(3, 1, 2)', 1.0),
    ('max(1)', 1.0),
    ('abs(-2.5)', 2.5),
    ('floor(-1.5)', -2.0),
    ('ceil(-1.5)', -1.0),
    ('exp(0)', 1.0),
    ('sqrt(2)', math.sqrt(2)),
    ('log(exp(2))', 2.0),
    ('max(0, min(1, 3 - 2.5))', 0.5),
    ('2\n * \t3', 6.0),
  ],
)
def test_formulas_follow_ordinary_mathematics(text, wanted):
  assert value(text) == pytest.approx(wanted, rel=1e-15)


def test_names_stand_for_scores():
  assert value('(name + email) / 2', name=1.0, email=0.5) == 0.75
  assert value('e1*größe_2', e1=2.0, größe_2=3.0) == 6.0


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'the end at character 1, need a number'),
    ('1 +', 'the end at character 4'),
    ('emial', "'emial' at character 1 is no grader (did you mean 'email'?)"),
    ('2 * (email', "need ')' for the '(' at character 5"),
    ('email)', "')' at character 6"),
    ('2email', "'email' at character 2, need an operator"),
    ('email email', 'character 7'),
    ('email % 2', "'%' at character 7"),
    ('email if 1 else 0', "'if' at character 7"),
    ('email[0]', "'[' at character 6"),
    ('email.real', "'.' at character 6"),
    ('__import__("os")', 'has no place'),
    ('round(email)', "'round' at character 1 is no function"),
    ('sqr(email)', "did you mean 'sqrt'?"),
    ('log(1, 2)', 'log at character 1 has 2 arguments'),
    ('min()', "')' at character 5"),
    ('max', "'max' at character 1 is a function"),
    ('1e999', 'too large'),
    ('1' * 10_001, '10001 characters'),
    ('(' * 200, 'nested more than'),
    ('2^' * 60 + '2', 'nested more than'),
    ('1,2', "',' at character 2"),
    (3, 'need a formula'),
  ],
)
def test_a_bad_formula_is_refused_with_its_place(text, words):
  with pytest.raises(formula.FormulaError) as caught:
    formula.parse(text, ['email'])
  assert words in str(caught.value)


@pytest.mark.parametrize(
  'text',
  [
    '1/x',
    'log(x)',
    'log(x - 1)',
    'sqrt(x - 1)',
    '(x - 8)^0.5',
    'exp(1000)',
    '10^1000',
    'x^-1',
    '1e308 * 10',
    '1 / (1e308 * 10)',
    '1e308 + 1e308',
    'x / x',
  ],
)
def test_what_has_no_finite_value_is_told(text):
  with pytest.raises(formula.FormulaError, match='no finite value'):
    value(text, x=0.0)


def test_a_long_sum_is_no_deep_one():
  assert value(' + '.join(['x'] * 2000), x=1.0) == 2000.0


NAMES = {'a': 0.25, 'b': -3.0, 'c1': 7.0}
BINARY = {
  '+': operator.add,
  '-': operator.sub,
  '*': operator.mul,
  '/': operator.truediv,
  '^': operator.pow,
}
UNARY = {
  'abs': abs,
  'floor': math.floor,
  'ceil': math.ceil,
  'exp': math.exp,
  'sqrt': math.sqrt,
  'log': math.log,
}
TREES = st.recursive(
  st.floats(0, 1e6).map(lambda x: ('number', x))
  | st.sampled_from(sorted(NAMES)).map(lambda name: ('name', name)),
  lambda inner: (
    st.tuples(st.sampled_from(sorted(BINARY)), inner, inner)
    | st.tuples(st.just('negative'), inner)
    | st.tuples(st.sampled_from(sorted(UNARY)), inner)
    | st.tuples(st.sampled_from(['min', 'max']), st.lists(inner, min_size=1, max_size=3))
  ),
  max_leaves=12,
)


def printed(tree) -> str:
  """Spells a tree with brackets round every part, so that no precedence is needed."""
  kind, *rest = tree
  if kind in ('number', 'name'):
    return repr(rest[0]) if kind == 'number' else rest[0]
  if kind == 'negative':
    return f'(-({printed(rest[0])}))'
  if kind in ('min', 'max'):
    return f'{kind}({", ".join(map(printed, rest[0]))})'
  if kind in UNARY:
    return f'{kind}({printed(rest[0])})'
  return f'({printed(rest[0])}) {kind} ({printed(rest[1])})'


def computed(tree) -> float:
  """Returns the tree's value by Python's own arithmetic; raises ArithmeticError without one."""
  kind, *rest = tree
  if kind in ('number', 'name'):
    return rest[0] if kind == 'number' else NAMES[rest[0]]
  if kind == 'negative':
    return -computed(rest[0])
  try:
    if kind in ('min', 'max'):
      result = {'min': min, 'max': max}[kind]([computed(part) for part in rest[0]])
    elif kind in UNARY:
      result = UNARY[kind](computed(rest[0]))
    else:
      result = BINARY[kind](computed(rest[0]), computed(rest[1]))
  except ValueError as error:
    raise ArithmeticError from error
  if isinstance(result, complex) or not math.isfinite(result):
    raise ArithmeticError
  return float(result)


@hypothesis.given(TREES)
@hypothesis.settings(max_examples=300, deadline=None)
def test_a_printed_tree_has_the_value_that_python_gives_the_tree(tree):
  parsed = formula.parse(printed(tree), NAMES)
  try:
    wanted = computed(tree)
  except ArithmeticError:
    with pytest.raises(formula.FormulaError):
      formula.evaluate(parsed, NAMES)
  else:
    assert formula.evaluate(parsed, NAMES) == wanted


@hypothesis.given(
  st.lists(
    st.tuples(
      st.sampled_from('+-*/^'),
      st.sampled_from(('', '-')),
      st.sampled_from(('1.0', '2.0', '3.5', 'a', 'c1')),
    ),
    max_size=4,
  )
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_precedence_is_that_of_python(parts):
  text = '2.0' + ''.join(f' {symbol} {sign}{operand}' for symbol, sign, operand in parts)
  parsed = formula.parse(text, NAMES)
  try:  # the oracle here is Python itself, which the package never asks
    wanted = eval(text.replace('^', '**'), {}, NAMES)
  except ArithmeticError:
    wanted = math.inf
  if math.isfinite(wanted):
    assert formula.evaluate(parsed, NAMES) == pytest.approx(wanted, rel=1e-12)
  else:
    with pytest.raises(formula.FormulaError):
      formula.evaluate(parsed, NAMES)


@hypothesis.given(st.text(max_size=40) | st.text('ab1.e+-*/^(), minlog', max_size=40))
@hypothesis.settings(max_examples=500, deadline=None)
def test_garbage_is_refused_and_nothing_else_happens(text):
  try:
    result = value(text, a=1.0, b=2.0)
  except formula.FormulaError:
    return
  assert math.isfinite(result)


# ------------------------------------------------------------------ the grader


def graded(grader, text, item=None, **settings):
  return graders.grade(
    grader, item={'answer': 'X'} if item is None else item, sample={'output_text': text}, **settings
  )


def test_the_reward_is_the_formula_and_the_components_are_the_parts():
  assert graded(TWO, '{"gene": "X"}') == Grade(0.25, {'exact': 0.0, 'gene': 1.0}, {})
  assert graded({**TWO, 'calculate_output': '1 - exact^2'}, '{"gene": "X"}').reward == 1.0


def test_a_list_of_graders_is_taken_by_their_names():
  listed = {**TWO, 'graders': [{**EXACT, 'name': 'exact'}, {**GENE, 'name': 'gene'}]}
  assert graded(listed, '{"gene": "X"}') == graded(TWO, '{"gene": "X"}')
  assert graders.describe(graders.make(listed)) == graders.describe(graders.make(TWO))


def test_a_policy_fault_in_a_part_pays_the_ungradable_reward_and_no_formula():
  grade = graded({**TWO, 'calculate_output': '1 - gene'}, 'X', ungradable_reward=-1.0)
  assert grade.reward == -1.0 and grade.components == {'exact': 1.0, 'gene': None}
  assert grade.errors['sample_parse_error'] is True
  assert grade.errors['sample_parse_error_details'].startswith('gene: ')


def test_a_grader_fault_in_a_part_is_nobodys_reward_even_beside_a_policy_fault():
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


def test_all_problems_are_told_with_their_path():
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
    "'my grader' cannot be named",
    'graders.inner: a multi cannot stand inside a multi',
    'graders.n is a number',
    "'gnee' at character 9 is no grader (did you mean 'gene'?)",
  ):
    assert words in message


@pytest.mark.parametrize(
  'given, words',
  [
    ([], 'graders is empty'),
    ({}, 'graders is empty'),
    ('x', 'graders is a string'),
    ([EXACT], "graders[0]: field 'name' is missing"),
    ([{**EXACT, 'name': 'a'}] * 2, "graders[1]: the name 'a' is taken"),
    ({'a': {'type': 'stringcheck'}}, "graders.a.type='stringcheck' is unknown"),
    ({'a': {}}, "graders.a: field 'type' is missing"),
  ],
)
def test_what_is_no_set_of_graders_is_refused(given, words):
  assert words in refusal({**TWO, 'graders': given})


def test_describe_is_the_normal_form_of_the_parts_too():
  described = graders.describe(
    graders.make({**TWO, 'graders': {'exact': {**EXACT, 'operation': 'neq'}, 'gene': GENE}})
  )
  assert described['graders']['exact'] == {**EXACT, 'name': 'exact', 'operation': 'ne'}
  assert described == graders.describe(graders.make(described))


def test_item_fields_are_those_that_are_known():
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
  """A grader of many(): waits until `together` of its kind are at work at once."""

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
  """A make_part that hands out Slow graders."""

  def __init__(self):
    self.barrier, self.made = threading.Barrier(2), {}

  def problems(self, _):
    return []

  def __call__(self, grader):
    if grader['type'] == 'broken':
      raise RuntimeError('no worker here')
    made = self.made[grader['name']] = Slow(grader['name'], self.barrier, grader['score'])
    return made


def multi_of(maker, **parts):
  return graders.GRADERS['multi'](
    name='m', graders=parts, calculate_output='a - b', make_part=maker
  )


def test_many_answers_go_to_each_part_at_once_and_the_parts_work_side_by_side():
  maker = Maker()
  grader = multi_of(maker, a={'type': 'slow', 'score': 3.0}, b={'type': 'slow', 'score': 1.0})
  assert [grade.reward for grade in graders.grade_many(grader, [({}, {})] * 5)] == [2.0] * 5
  assert [part.calls for part in maker.made.values()] == [1, 1]
  counts = grader.tallies['a'].take()
  assert counts['grades'] == 5 and counts['seconds'] >= 0.01
  grader.close()
  assert all(part.closed for part in maker.made.values())


def test_a_part_that_cannot_be_started_closes_those_before_it():
  maker = Maker()
  with pytest.raises(ValueError, match='graders.b: no worker here'):
    multi_of(maker, a={'type': 'slow', 'score': 3.0}, b={'type': 'broken'})
  assert maker.made['a'].closed


def test_tallies_count_the_errors_of_each_part():
  grader = graders.make(TWO)
  graders.grade_many(
    grader, [({'answer': 'X'}, {'output_text': 'X'}), ({}, {'output_text': 'X'})], retries=0
  )
  exact, gene = grader.tallies['exact'].take(), grader.tallies['gene'].take()
  assert exact['grades'] == gene['grades'] == 2
  assert exact['errors/invalid_variable_error'] == 1 and 'errors/sample_parse_error' not in exact
  assert gene['errors/invalid_variable_error'] == gene['errors/sample_parse_error'] == 1
