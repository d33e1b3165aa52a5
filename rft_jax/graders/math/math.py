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

  Only the final answer in the input counts: the last \boxed{}, and nothing if that one is not
  closed; else the text after the last ####; else the last LaTeX, or an input that is only an
  expression, or in prose the number after "answer" or the last number. Boxes joined by "and", "or"
  or a comma are one answer with several values, and so not equal to one of them. 1/2 equals 0.5,
  1,234 equals 1234, and 50 % both 0.5 and 50; units are ignored; integers of any size are exact.

      Math(name='math', input='{{ sample.output_text }}', reference='{{ item.answer }}')

  An answer that cannot be parsed scores 0.0: it is not correct. A reference that cannot be parsed
  is the grader fault other_error, with the reference in its details.

  A time-out, the memory limit and a process that dies are the grader fault
  python_grader_server_error, although an answer such as 9^{9^{9^9}} may cause them: they mean that
  this machine has not decided, not that the answer is wrong, and on a busy machine a correct answer
  may time out too. The policy gains nothing by causing them: the group is dropped from training.

  Raises:
    ValueError: at construction, listing every problem.
    RuntimeError: at construction, if no process can be started here.
  """

  name: str
  input: str
  reference: str
  time_limit_seconds: float = 5.0  # wall clock, of one answer, from the start of its verification
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
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    sandbox = fields.get('sandbox') or SandboxConfig()
    problems = [f'sandbox.{problem}' for problem in sandbox.validate()]
    problems += base.template_problems(fields, ('input', 'reference'))
    seconds = fields.get('time_limit_seconds', 5.0)
    if type(seconds) not in (int, float) or not 0 < seconds < float('inf'):
      problems.append(f'time_limit_seconds={seconds!r}, need a number > 0')
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, computed in parallel by the workers."""
    grades: dict[int, Grade] = {}  # by index into pairs
    text_pairs, indices = [], []
    for index, (item, sample) in enumerate(pairs):
      try:
        answer, reference = template.render_all(
          [self.input, self.reference], item=item, sample=sample
        )
        text_pairs.append((reference, answer))
        indices.append(index)
      except template.Fault as fault:
        grades[index] = base.template_fault(self, fault)
    for index, texts, verdict in zip(indices, text_pairs, self._pool.verify(text_pairs)):
      grades[index] = self._grade(*texts, verdict)
    return [grades[index] for index in range(len(pairs))]

  def _grade(self, reference: str, answer: str, verdict: Verdict) -> Grade:
    if verdict.kind in ('equal', 'different'):
      score = float(verdict.kind == 'equal')
      return Grade(score, {self.name: score}, {})
    if verdict.kind == 'no_reference':
      return base.grader_fault(
        self,
        {
          'other_error': True,
          'other_error_details': f'reference is {reference!r:.200}, need a mathematical expression',
        },
      )
    return base.sandbox_fault(
      self,
      verdict.kind,
      f'{verdict.details}; reference {reference!r:.200}, end of the answer {answer[-200:]!r}',
    )

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Kills the processes."""
    self._pool.close()
