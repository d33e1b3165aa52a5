"""The `math` grader: is the answer equal to the reference, as mathematics?"""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.math.pool import Pool, Verdict
from rft_jax.graders.sandbox.pool import SandboxConfig
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Math:
  r"""Scores 1.0 if math-verify finds input equal to reference, otherwise 0.0.

  What counts of an input is what it says in the end: the last \boxed{}, and nothing if that one
  is not closed; else what follows the last ####; else the last LaTeX, or a bare expression as a
  whole, or in prose the number after "answer" or the last one. Boxes joined by "and", "or" or a
  comma are one answer of several values, and so not equal to one of them. 1/2 and 0.5 are equal,
  1,234 and 1234, 50 % and both 0.5 and 50; units are left out; integers of any size are exact.

      Math(name='math', input='{{ sample.output_text }}', reference='{{ item.answer }}')

  An answer in which nothing can be read scores 0.0, being no right answer. A reference in which
  nothing can be read is the grader fault other_error, which quotes it.

  A time-out, the memory limit and a process that dies are the grader fault
  python_grader_server_error, though an answer such as 9^{9^{9^9}} brings them about: they say
  that this machine did not decide, not that the answer is wrong, and a busy machine runs out of
  time on good answers too. A group so dropped teaches nothing, so that nothing is gained by it.

  Raises:
    ValueError: at construction, listing every problem.
    RuntimeError: at construction, if no process can be started here.
  """

  name: str
  input: str
  reference: str
  time_limit_seconds: float = 5.0  # wall clock, of one answer, from when it is taken up
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
  _pool: Pool = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(
      self,
      '_pool',
      Pool(
        workers=self.sandbox.workers,
        time_limit_seconds=self.time_limit_seconds,
        memory_limit_mb=self.sandbox.memory_limit_mb,
      ),
    )

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    sandbox = given.get('sandbox') or SandboxConfig()
    found = [f'sandbox.{problem}' for problem in sandbox.validate()]
    found += base.template_problems(given, ('input', 'reference'))
    seconds = given.get('time_limit_seconds', 5.0)
    if type(seconds) not in (int, float) or not 0 < seconds < float('inf'):
      found.append(f'time_limit_seconds={seconds!r}, need a number > 0')
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, as many at once as there are workers."""
    grades: list[Grade | None] = [None] * len(pairs)
    asked, places = [], []
    for place, (item, sample) in enumerate(pairs):
      try:
        given, wanted = template.render_all([self.input, self.reference], item=item, sample=sample)
        asked.append((wanted, given))
        places.append(place)
      except template.Fault as fault:
        grades[place] = base.faulty(self, fault)
    for place, pair, verdict in zip(places, asked, self._pool.verify(asked)):
      grades[place] = self._grade(*pair, verdict)
    return grades

  def _grade(self, wanted: str, given: str, verdict: Verdict) -> Grade:
    if verdict.kind in ('equal', 'different'):
      score = float(verdict.kind == 'equal')
      return Grade(score, {self.name: score}, {})
    if verdict.kind == 'no_reference':
      return base.grader_fault(
        self,
        {
          'other_error': True,
          'other_error_details': (f'reference is {wanted!r:.200}, need a mathematical expression'),
        },
      )
    return base.sandbox_fault(
      self,
      verdict.kind,
      (f'{verdict.details}; reference {wanted!r:.200}, end of the answer {given[-200:]!r}'),
    )

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Kills the processes."""
    self._pool.close()
