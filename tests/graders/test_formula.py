"""Formulas of multi graders: precedence, functions, errors with their position, random trees."""

import math
import operator

import hypothesis
import pytest
from hypothesis import strategies as st

from rft_jax.graders import formula


def value(text, **names):
  return formula.evaluate(formula.parse(text, names), names)


@pytest.mark.parametrize(
  'text, expected',
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
def test_formulas_follow_ordinary_mathematics(text, expected):
  assert value(text) == pytest.approx(expected, rel=1e-15)


def test_names_stand_for_scores():
  assert value('(name + email) / 2', name=1.0, email=0.5) == 0.75
  assert value('e1*größe_2', e1=2.0, größe_2=3.0) == 6.0


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'the end at character 1, need a number'),
    ('1 +', 'the end at character 4'),
    ('emial', "'emial' at character 1 is not a grader (did you mean 'email'?)"),
    ('2 * (email', "need ')' for the '(' at character 5"),
    ('email)', "')' at character 6"),
    ('2email', "'email' at character 2, need an operator"),
    ('email email', 'character 7'),
    ('email % 2', "'%' at character 7"),
    ('email if 1 else 0', "'if' at character 7"),
    ('email[0]', "'[' at character 6"),
    ('email.real', "'.' at character 6"),
    ('__import__("os")', 'not allowed'),
    ('round(email)', "'round' at character 1 is not a function"),
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
def test_an_invalid_formula_is_refused_with_the_character_position(text, words):
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
def test_a_formula_without_a_finite_value_raises(text):
  with pytest.raises(formula.FormulaError, match='no finite value'):
    value(text, x=0.0)


def test_a_long_sum_is_not_nested():
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


def to_text(tree) -> str:
  """Returns a tree as a formula with brackets around every part, so that precedence is unused."""
  kind, *rest = tree
  if kind in ('number', 'name'):
    return repr(rest[0]) if kind == 'number' else rest[0]
  if kind == 'negative':
    return f'(-({to_text(rest[0])}))'
  if kind in ('min', 'max'):
    return f'{kind}({", ".join(map(to_text, rest[0]))})'
  if kind in UNARY:
    return f'{kind}({to_text(rest[0])})'
  return f'({to_text(rest[0])}) {kind} ({to_text(rest[1])})'


def python_value(tree) -> float:
  """Returns the value of a tree in Python's arithmetic; raises ArithmeticError without one."""
  kind, *rest = tree
  if kind in ('number', 'name'):
    return rest[0] if kind == 'number' else NAMES[rest[0]]
  if kind == 'negative':
    return -python_value(rest[0])
  try:
    if kind in ('min', 'max'):
      result = {'min': min, 'max': max}[kind]([python_value(part) for part in rest[0]])
    elif kind in UNARY:
      result = UNARY[kind](python_value(rest[0]))
    else:
      result = BINARY[kind](python_value(rest[0]), python_value(rest[1]))
  except ValueError as error:
    raise ArithmeticError from error
  if isinstance(result, complex) or not math.isfinite(result):
    raise ArithmeticError
  return float(result)


@hypothesis.given(TREES)
@hypothesis.settings(max_examples=300, deadline=None)
def test_a_random_formula_has_the_value_that_python_computes(tree):
  parsed = formula.parse(to_text(tree), NAMES)
  try:
    expected = python_value(tree)
  except ArithmeticError:
    with pytest.raises(formula.FormulaError):
      formula.evaluate(parsed, NAMES)
  else:
    assert formula.evaluate(parsed, NAMES) == expected


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
  try:  # the oracle is Python itself; the package never uses eval
    expected = eval(text.replace('^', '**'), {}, NAMES)
  except ArithmeticError:
    expected = math.inf
  if math.isfinite(expected):
    assert formula.evaluate(parsed, NAMES) == pytest.approx(expected, rel=1e-12)
  else:
    with pytest.raises(formula.FormulaError):
      formula.evaluate(parsed, NAMES)


@hypothesis.given(st.text(max_size=40) | st.text('ab1.e+-*/^(), minlog', max_size=40))
@hypothesis.settings(max_examples=500, deadline=None)
def test_random_text_is_refused_or_has_a_finite_value(text):
  try:
    result = value(text, a=1.0, b=2.0)
  except formula.FormulaError:
    return
  assert math.isfinite(result)
