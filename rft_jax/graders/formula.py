"""Formulas of the `multi` grader: parser and evaluator of arithmetic over grader scores.

    formula  = term (('+' | '-') term)*
    term     = signed (('*' | '/') signed)*
    signed   = ('-' | '+') signed | power
    power    = operand (('^' | '**') signed)?
    operand  = number | name | function '(' formula (',' formula)* ')' | '(' formula ')'

So -2^2 is -4, 2^-1 is 0.5 and 2^3^2 is 2^9. A name is that of a grader, not of a function. All
numbers are floats; log is the natural logarithm. Python's eval is not used.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from rft_jax.graders.template import did_you_mean

# name: (function, takes any number of arguments)
FUNCTIONS: dict[str, tuple[Callable[..., float], bool]] = {
  'min': (min, True),
  'max': (max, True),
  'abs': (abs, False),
  'floor': (math.floor, False),
  'ceil': (math.ceil, False),
  'exp': (math.exp, False),
  'sqrt': (math.sqrt, False),
  'log': (math.log, False),
}
MAX_CHARACTERS = 10_000
MAX_DEPTH = 50  # nested brackets, signs and powers: parsing and evaluating recurse

_TOKEN = re.compile(
  r'\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|'
  r'(?P<name>[^\W\d]\w*)|(?P<symbol>\*\*|[-+*/^(),])|(?P<other>\S))'
)


class FormulaError(ValueError):
  """A formula that cannot be parsed, or has no finite value for the given scores."""


class Number(NamedTuple):
  value: float


class Name(NamedTuple):
  name: str


class Negative(NamedTuple):
  operand: 'Node'


class Chain(NamedTuple):
  """Operators of equal precedence, applied from left to right."""

  first: 'Node'
  rest: tuple[tuple[str, 'Node'], ...]  # ('+' or '-', operand)s, or ('*' or '/', operand)s


class Power(NamedTuple):
  base: 'Node'
  exponent: 'Node'


class Call(NamedTuple):
  function: str
  arguments: tuple['Node', ...]


Node = Number | Name | Negative | Chain | Power | Call


def parse(text: str, names) -> Node:
  """Returns the syntax tree of a formula.

  Args:
    text: the formula.
    names: of the graders, which the formula may use.

  Raises:
    FormulaError: a syntax error or an unknown name; names the character position.
  """
  if not isinstance(text, str):
    raise FormulaError(f'{text!r:.80}, need a formula such as "(a + b) / 2"')
  if len(text) > MAX_CHARACTERS:
    raise FormulaError(f'has {len(text)} characters, need at most {MAX_CHARACTERS}')
  parser = _Parser(_tokens(text), tuple(names))
  tree = parser.formula()
  if parser.next.kind != 'end':
    raise parser.unexpected('an operator or the end')
  return tree


def name_problem(name) -> str | None:
  """Returns why a formula cannot refer to a grader called `name`; None if it can."""
  if not isinstance(name, str) or not re.fullmatch(r'[^\W\d]\w*', name):
    return (
      f'{name!r} cannot be used in a formula: need letters, digits and _, not starting with a '
      'digit; rename it'
    )
  return f'{name!r} is a function of formulas; rename it' if name in FUNCTIONS else None


def evaluate(node: Node, values: dict[str, float]) -> float:
  """Returns the value of a syntax tree.

  Args:
    node: from parse.
    values: a finite number for each name.

  Raises:
    FormulaError: division by 0, log of 0, a root of a negative number, or an intermediate result
      that is too large for a float.
  """
  match node:
    case Number(value):
      return value
    case Name(name):
      return float(values[name])
    case Negative(operand):
      return -evaluate(operand, values)
    case Chain(first, rest):
      result = evaluate(first, values)
      for symbol, right in rest:
        result = _operate(symbol, result, evaluate(right, values))
      return result
    case Power(base, exponent):
      return _finite(math.pow, '^', evaluate(base, values), evaluate(exponent, values))
    case Call(function, arguments):
      numbers = [evaluate(argument, values) for argument in arguments]
      return _finite(_function(function), function, *numbers)
  raise TypeError(f'{node!r} is not a node of a formula')


def _operate(symbol: str, left: float, right: float) -> float:
  operation = {
    '+': lambda a, b: a + b,
    '-': lambda a, b: a - b,
    '*': lambda a, b: a * b,
    '/': lambda a, b: a / b,
  }[symbol]
  return _finite(operation, symbol, left, right)


def _function(name: str):
  function, is_variadic = FUNCTIONS[name]
  return (lambda *arguments: function(arguments)) if is_variadic else function


def _finite(operation, symbol: str, *operands: float) -> float:
  """Returns operation(*operands), which must be a finite number."""
  try:
    result = float(operation(*operands))
  except (ArithmeticError, ValueError) as error:  # outside the domain, or too large
    result, reason = math.nan, f': {error}'
  else:
    reason = ''
  if not math.isfinite(result):
    expression = (
      f' {symbol} '.join(map(repr, operands))
      if symbol in '+-*/^'
      else f'{symbol}({", ".join(map(repr, operands))})'
    )
    raise FormulaError(f'{expression} has no finite value{reason}')
  return result


# ------------------------------------------------------------------ parsing


class _Token(NamedTuple):
  kind: str  # number, name, symbol, end
  text: str
  position: int  # of its first character, from 1

  def shown(self) -> str:
    return 'the end' if self.kind == 'end' else repr(self.text)


def _tokens(text: str) -> list[_Token]:
  tokens = []
  for match in _TOKEN.finditer(text):
    kind = match.lastgroup
    assert kind is not None  # each alternative of _TOKEN is a named group
    token = _Token(kind, match[kind], match.start(kind) + 1)
    if kind == 'other':
      raise FormulaError(
        f'{token.text!r} at character {token.position} is not allowed in a formula; '
        'need only names of graders, numbers, + - * / ^, parentheses and '
        f'{", ".join(FUNCTIONS)}'
      )
    tokens.append(token)
  return [*tokens, _Token('end', '', len(text) + 1)]


@dataclasses.dataclass
class _Parser:
  """Recursive descent parser, with one method for each rule of the grammar."""

  tokens: list[_Token]
  names: tuple[str, ...]
  index: int = 0
  depth: int = 0

  @property
  def next(self) -> _Token:
    return self.tokens[self.index]

  def accept(self, *symbols: str) -> str | None:
    """Consumes and returns the next token if it is one of these symbols; otherwise None."""
    if self.next.kind != 'symbol' or self.next.text not in symbols:
      return None
    self.index += 1
    return self.tokens[self.index - 1].text

  def unexpected(self, need: str) -> FormulaError:
    return FormulaError(f'{self.next.shown()} at character {self.next.position}, need {need}')

  def formula(self) -> Node:
    return self._chain(self.term, '+', '-')

  def term(self) -> Node:
    return self._chain(self.signed, '*', '/')

  def _chain(self, operand, *symbols) -> Node:
    first, rest = operand(), []
    while symbol := self.accept(*symbols):
      rest.append((symbol, operand()))
    return Chain(first, tuple(rest)) if rest else first

  def signed(self) -> Node:
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise FormulaError(f'is nested more than {MAX_DEPTH} deep at character {self.next.position}')
    sign = self.accept('-', '+')
    inner = self.signed() if sign else self.power()
    self.depth -= 1
    return Negative(inner) if sign == '-' else inner

  def power(self) -> Node:
    base = self.operand()
    return Power(base, self.signed()) if self.accept('^', '**') else base

  def operand(self) -> Node:
    token = self.next
    if self.accept('('):
      inner = self.formula()
      if not self.accept(')'):
        raise self.unexpected(f"')' for the '(' at character {token.position}")
      return inner
    if token.kind not in ('number', 'name'):
      raise self.unexpected("a number, the name of a grader, a function or '('")
    self.index += 1
    if token.kind == 'number':
      return self._number(token)
    if self.accept('('):
      return self._call(token)
    return self._name(token)

  def _number(self, token: _Token) -> Number:
    if not math.isfinite(float(token.text)):
      raise FormulaError(f'{token.text} at character {token.position} is too large for a float')
    return Number(float(token.text))

  def _name(self, token: _Token) -> Name:
    if token.text in self.names:
      return Name(token.text)
    if token.text in FUNCTIONS:
      raise FormulaError(
        f'{token.text!r} at character {token.position} is a function, need {token.text}(...)'
      )
    raise FormulaError(
      f'{token.text!r} at character {token.position} is not a grader'
      f'{did_you_mean(token.text, self.names)}; need one of '
      f'{", ".join(self.names) or "none"}'
    )

  def _call(self, token: _Token) -> Call:
    if token.text not in FUNCTIONS:
      raise FormulaError(
        f'{token.text!r} at character {token.position} is not a function'
        f'{did_you_mean(token.text, FUNCTIONS)}; need one of '
        f'{", ".join(FUNCTIONS)}'
      )
    arguments = [self.formula()]
    while self.accept(','):
      arguments.append(self.formula())
    if not self.accept(')'):
      raise self.unexpected(f"',' or the ')' of {token.text} at character {token.position}")
    if len(arguments) != 1 and not FUNCTIONS[token.text][1]:
      raise FormulaError(
        f'{token.text} at character {token.position} has {len(arguments)} arguments, need 1'
      )
    return Call(token.text, tuple(arguments))
