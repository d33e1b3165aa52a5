"""The `rank` grader: scores the rank of the correct entry in a list of the answer."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.sample import parse_json
from rft_jax.types import Grade

DECAYS = {
  'reciprocal': lambda rank, base, max_length: 1 / rank,
  'geometric': lambda rank, base, max_length: base ** (rank - 1),
  'linear': lambda rank, base, max_length: 1 - (rank - 1) / max_length,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank:
  """Scores by the rank of the first correct entry of a JSON list; 0.0 if there is none.

      reciprocal  1 / rank
      geometric   base ** (rank - 1)
      linear      1 - (rank - 1) / max_length

  Entries are compared without surrounding white space, and without case unless case_sensitive. A
  repeated entry counts once, at its first rank. An entry that is not a string takes a rank and is
  never correct. Ranks beyond max_length do not count, so that listing everything is not rewarded.

      Rank(name='gene', input='{{ sample.output_json.genes }}', reference='{{ item.gene }}',
           decay='reciprocal')

  An input that is not a JSON list is the policy fault sample_parse_error. A reference is one name,
  or a JSON list of names that are all correct; an empty one is a grader fault.

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
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = base.template_problems(fields, ('input', 'reference'))
    decay, decay_base = fields.get('decay', 'reciprocal'), fields.get('base', 0.7)
    max_length, case_sensitive = fields.get('max_length', 10), fields.get('case_sensitive', False)
    if not isinstance(decay, str) or decay not in DECAYS:
      hint = template.did_you_mean(decay, DECAYS)
      problems.append(f'decay={decay!r}{hint}, need one of {", ".join(DECAYS)}')
    if type(decay_base) not in (int, float) or not 0 < decay_base <= 1:
      problems.append(f'base={decay_base!r}, need a number in (0, 1]')
    if type(max_length) is not int or max_length < 1:
      problems.append(f'max_length={max_length!r}, need an integer >= 1')
    if not isinstance(case_sensitive, bool):
      problems.append(f'case_sensitive={case_sensitive!r}, need true or false')
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text, reference = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    names = self._names(reference)
    if not names:
      return base.grader_fault(
        self,
        {
          'other_error': True,
          'other_error_details': (
            f'reference is {reference!r:.200}, need a name, or a JSON list of names'
          ),
        },
      )
    entries = _json_list(text)
    if entries is None:
      return base.policy_fault(
        self,
        {
          'sample_parse_error': True,
          'sample_parse_error_details': (f'input is {text!r:.200}, need a JSON list'),
        },
      )
    score = self._score(entries, names)
    return Grade(score, {self.name: score}, {})

  def _score(self, entries: list, names: set[str]) -> float:
    rank, keys = 0, set()
    for entry in entries:
      key = self._key(entry) if isinstance(entry, str) else None
      if key is not None and key in keys:
        continue
      keys.add(key)
      rank += 1
      if rank > self.max_length:
        break
      if key in names:
        return float(DECAYS[self.decay](rank, self.base, self.max_length))
    return 0.0

  def _names(self, reference: str) -> set[str]:
    """Returns the keys of the correct names; none if an entry of the reference is not a name."""
    entries = _json_list(reference)
    names = [reference] if entries is None else entries
    if not all(isinstance(name, str) and name.strip() for name in names):
      return set()
    return {self._key(name) for name in names}

  def _key(self, name: str) -> str:
    return name.strip() if self.case_sensitive else name.strip().casefold()

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""


def _json_list(text: str) -> list | None:
  """Returns text parsed as a JSON list; None if it is not one."""
  try:
    value = parse_json(text)
  except ValueError:
    return None
  return value if isinstance(value, list) else None
