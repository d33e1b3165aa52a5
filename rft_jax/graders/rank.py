"""The `rank` grader: where in a list of the answer's the right entry stands."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.sample import parse_json
from rft_jax.types import Grade

DECAYS = {
  'reciprocal': lambda rank, base, longest: 1 / rank,
  'geometric': lambda rank, base, longest: base ** (rank - 1),
  'linear': lambda rank, base, longest: 1 - (rank - 1) / longest,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank:
  """Scores by the rank of the first right entry of a JSON list; 0.0 where there is none.

      reciprocal  1 / rank
      geometric   base ** (rank - 1)
      linear      1 - (rank - 1) / max_length

  Entries are compared without the white space around them, and without case unless
  case_sensitive. A repeated entry keeps its first rank and takes no second one. An entry that is
  no string takes a rank and is never right. What stands beyond rank max_length does not count, so
  that naming everything does not pay.

      Rank(name='gene', input='{{ sample.output_json.genes }}', reference='{{ item.gene }}',
           decay='reciprocal')

  An input that is not a JSON list is the policy fault sample_parse_error. A reference is one
  name, or a JSON list of names of which each is right; an empty one is a grader fault.

  Raises:
    ValueError: at construction, listing every problem.
  """

  name: str
  input: str  # renders to a JSON list
  reference: str  # renders to a name, or to a JSON list of names
  decay: str = 'reciprocal'
  base: float = 0.7  # of the geometric decay, in (0, 1]
  max_length: int = 10  # ranks that count
  case_sensitive: bool = False
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = base.template_problems(given, ('input', 'reference'))
    decay, shrink = given.get('decay', 'reciprocal'), given.get('base', 0.7)
    longest, cased = given.get('max_length', 10), given.get('case_sensitive', False)
    if not isinstance(decay, str) or decay not in DECAYS:
      hint = template.did_you_mean(decay, DECAYS)
      found.append(f'decay={decay!r}{hint}, need one of {", ".join(DECAYS)}')
    if type(shrink) not in (int, float) or not 0 < shrink <= 1:
      found.append(f'base={shrink!r}, need a number in (0, 1]')
    if type(longest) is not int or longest < 1:
      found.append(f'max_length={longest!r}, need an integer >= 1')
    if not isinstance(cased, bool):
      found.append(f'case_sensitive={cased!r}, need true or false')
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      given, wanted = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
    names = self._names(wanted)
    if not names:
      return base.grader_fault(
        self,
        {
          'other_error': True,
          'other_error_details': (
            f'reference is {wanted!r:.200}, need a name, or a JSON list of names'
          ),
        },
      )
    entries = _json_list(given)
    if entries is None:
      return base.policy_fault(
        self,
        {
          'sample_parse_error': True,
          'sample_parse_error_details': (f'input is {given!r:.200}, need a JSON list'),
        },
      )
    score = self._score(entries, names)
    return Grade(score, {self.name: score}, {})

  def _score(self, entries: list, names: set[str]) -> float:
    rank, seen = 0, set()
    for entry in entries:
      key = self._key(entry) if isinstance(entry, str) else None
      if key is not None and key in seen:
        continue
      seen.add(key)
      rank += 1
      if rank > self.max_length:
        break
      if key in names:
        return float(DECAYS[self.decay](rank, self.base, self.max_length))
    return 0.0

  def _names(self, wanted: str) -> set[str]:
    """Returns the keys of the accepted names; none where the reference holds what is no name."""
    several = _json_list(wanted)
    names = [wanted] if several is None else several
    if not all(isinstance(name, str) and name.strip() for name in names):
      return set()
    return {self._key(name) for name in names}

  def _key(self, name: str) -> str:
    return name.strip() if self.case_sensitive else name.strip().casefold()

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: there is nothing to free."""


def _json_list(text: str) -> list | None:
  """Returns the JSON list that text spells; None if it spells none."""
  try:
    value = parse_json(text)
  except ValueError:
    return None
  return value if isinstance(value, list) else None
