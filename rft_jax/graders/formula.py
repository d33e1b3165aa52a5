"""Formulas of the `multi` grader: parsed by a grammar of their own, never run as a program.

    formula  = term (('+' | '-') term)*
    term     = signed (('*' | '/') signed)*
    signed   = ('-' | '+') signed | power
    power    = operand (('^' | '**') signed)?
    operand  = number | name | function '(' formula (',' formula)* ')' | '(' formula ')'

So -2^2 is -4, 2^-1 is 0.5 and 2^3^2 is 2^9. A name is a grader's; it may not be a function's.
Everything is a float; log is the natural logarithm.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from rft_jax.graders.template import did_you_mean

FUNCTIONS = {  # name: (function, takes any number of arguments)
  'min': (min, True),
  'max': (max, True),
  'abs': (abs, False),
  'floor': (math.floor, False),
  'ceil': (math.ceil, False),
  'exp': (math.exp, False),
  'sqrt': (math.sqrt, False),
  'log': (math.log, False),
}
LONGEST = 10_000  # characters
DEEPEST = 50  # brackets, signs and powers inside each other: parsing and evaluating recurse

_TOKEN = re.compile(
  r'\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|'
  r'(?P<name>[^\W\d]\w*)|(?P<symbol>\*\*|[-+*/^(),])|(?P<other>\S))'
)


class FormulaError(ValueError):
  """A formula that cannot be read, or has no finite value for these scores. Says why."""


class Number(NamedTuple):
  value: float


class Name(NamedTuple):
  name: str


class Negative(NamedTuple):
  operand: 'Node'


class Chain(NamedTuple):
  """Operators of the same rank, applied from left to right."""

  first: 'Node'
  rest: tuple[tuple[str, 'Node'], ...]  # '+' or '-', or else '*' or '/', each with its right side


class Power(NamedTuple):
  base: 'Node'
  exponent: 'Node'


class Call(NamedTuple):
  function: str
  arguments: tuple['Node', ...]


Node = Number | Name | Negative | Chain | Power | Call


def parse(text: str, names) -> Node:
  """Returns the tree of a formula.

  Args:
    text: the formula.
    names: what it may name, the graders.

  Raises:
    FormulaError: it cannot be read, or names something else; says at which character.
  """
  if not isinstance(text, str):
    raise FormulaError(f'{text!r:.80}, need a formula such as "(a + b) / 2"')
  if len(text) > LONGEST:
    raise FormulaError(f'has {len(text)} characters, need at most {LONGEST}')
  parser = _Parser(_tokens(text), tuple(names))
  tree = parser.formula()
  if parser.next.kind != 'end':
    raise parser.unexpected('an operator or the end')
  return tree


def name_problem(name) -> str | None:
  """Returns why a formula could not name a grader so, None if it could."""
  if not isinstance(name, str) or not re.fullmatch(r'[^\W\d]\w*', name):
    return (
      f'{name!r} cannot be named in a formula: need letters, digits and _, with no digit '
      'first; rename it'
    )
  return f'{name!r} is a function of formulas; rename it' if name in FUNCTIONS else None


def evaluate(node: Node, values: dict[str, float]) -> float:
  """Returns the value of a tree.

  Args:
    node: from parse.
    values: a finite number for each name.

  Raises:
    FormulaError: it has none: division by 0, log of 0, a root of a negative number, or a result
      on the way that is too large for a float.
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
      given = [evaluate(argument, values) for argument in arguments]
      return _finite(_of_all(function), function, *given)
  raise TypeError(f'{node!r} is no part of a formula')


def _operate(symbol: str, left: float, right: float) -> float:
  operation = {
    '+': lambda a, b: a + b,
    '-': lambda a, b: a - b,
    '*': lambda a, b: a * b,
    '/': lambda a, b: a / b,
  }[symbol]
  return _finite(operation, symbol, left, right)


def _of_all(name: str):
  function, any_number = FUNCTIONS[name]
  return (lambda *given: function(given)) if any_number else function


def _finite(operation, shown: str, *given: float) -> float:
  """Returns operation(*given), which must be a finite number."""
  try:
    result = float(operation(*given))
  except (ArithmeticError, ValueError) as error:  # outside the domain, or too large
    result, reason = math.nan, f': {error}'
  else:
    reason = ''
  if not math.isfinite(result):
    arguments = (
      f' {shown} '.join(map(repr, given))
      if shown in '+-*/^'
      else (f'{shown}({", ".join(map(repr, given))})')
    )
    raise FormulaError(f'{arguments} has no finite value{reason}')
  return result


# ------------------------------------------------------------------ reading


class _Token(NamedTuple):
  kind: str  # number, name, symbol, end
  text: str
  position: int  # of its first character, counting from 1

  def shown(self) -> str:
    return 'the end' if self.kind == 'end' else repr(self.text)


def _tokens(text: str) -> list[_Token]:
  found = [
    _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1)
    for match in _TOKEN.finditer(text)
  ]
  for token in found:
    if token.kind == 'other':
      raise FormulaError(
        f'{token.text!r} at character {token.position} has no place in a formula; '
        'need only names of graders, numbers, + - * / ^, parentheses and '
        f'{", ".join(FUNCTIONS)}'
      )
  return [*found, _Token('end', '', len(text) + 1)]


@dataclasses.dataclass
class _Parser:
  """Reads tokens from left to right, one method for each line of the grammar."""

  tokens: list[_Token]
  names: tuple[str, ...]
  place: int = 0
  depth: int = 0

  @property
  def next(self) -> _Token:
    return self.tokens[self.place]

  def take(self, *symbols: str) -> str | None:
    """Returns the next token and goes on, if it is one of these symbols."""
    if self.next.kind != 'symbol' or self.next.text not in symbols:
      return None
    self.place += 1
    return self.tokens[self.place - 1].text

  def unexpected(self, need: str) -> FormulaError:
    return FormulaError(f'{self.next.shown()} at character {self.next.position}, need {need}')

  def formula(self) -> Node:
    return self._chain(self.term, '+', '-')

  def term(self) -> Node:
    return self._chain(self.signed, '*', '/')

  def _chain(self, operand, *symbols) -> Node:
    first, rest = operand(), []
    while symbol := self.take(*symbols):
      rest.append((symbol, operand()))
    return Chain(first, tuple(rest)) if rest else first

  def signed(self) -> Node:
    self.depth += 1
    if self.depth > DEEPEST:
      raise FormulaError(f'is nested more than {DEEPEST} deep at character {self.next.position}')
    sign = self.take('-', '+')
    inner = self.signed() if sign else self.power()
    self.depth -= 1
    return Negative(inner) if sign == '-' else inner

  def power(self) -> Node:
    base = self.operand()
    return Power(base, self.signed()) if self.take('^', '**') else base

  def operand(self) -> Node:
    token = self.next
    if self.take('('):
      inner = self.formula()
      if not self.take(')'):
        raise self.unexpected(f"')' for the '(' at character {token.position}")
      return inner
    if token.kind not in ('number', 'name'):
      raise self.unexpected("a number, the name of a grader, a function or '('")
    self.place += 1
    if token.kind == 'number':
      return self._number(token)
    if self.take('('):
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
      f'{token.text!r} at character {token.position} is no grader'
      f'{did_you_mean(token.text, self.names)}; there are '
      f'{", ".join(self.names) or "none"}'
    )

  def _call(self, token: _Token) -> Call:
    if token.text not in FUNCTIONS:
      raise FormulaError(
        f'{token.text!r} at character {token.position} is no function'
        f'{did_you_mean(token.text, FUNCTIONS)}; there are '
        f'{", ".join(FUNCTIONS)}'
      )
    arguments = [self.formula()]
    while self.take(','):
      arguments.append(self.formula())
    if not self.take(')'):
      raise self.unexpected(f"',' or the ')' of {token.text} at character {token.position}")
    if len(arguments) != 1 and not FUNCTIONS[token.text][1]:
      raise FormulaError(
        f'{token.text} at character {token.position} has {len(arguments)} arguments, need 1'
      )
    return Call(token.text, tuple(arguments))
