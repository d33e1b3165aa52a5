"""The `code` grader: runs the answer, a Python program, in a sandbox against tests of its row."""

import dataclasses
import json
import re
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.sandbox.pool import Sandbox, SandboxConfig
from rft_jax.graders.sandbox.process import Outcome
from rft_jax.types import Grade

SCORES = ('fraction', 'all')
_FENCE = re.compile(
  r'^[ \t]*(?:```|~~~)([^\n`]*)\n(.*?)^[ \t]*(?:```|~~~)[ \t]*$', re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Code:
  """Scores by the share of a row's tests that the answer, a Python program, passes.

  Not a type of the OpenAI API. The program is the last ```python block of input, otherwise the last
  block, otherwise all of it. It runs in one process and the tests in another, which reaches the
  program's names (worker_code.py). A program that does not compile, raises, exits, hangs or takes
  too much memory fails its tests: score 0, not a fault. Tests that do not compile are a grader
  fault.

      Code(name='runs', tests='{{ item.tests }}')  # a string, or a list of strings
      Code(name='humaneval', setup='{{ item.prompt }}', tests='{{ item.test }}',
           entry_point='{{ item.entry_point }}')

  Fields:
    input: template of the answer.
    tests: template of Python source, or of a JSON array of such sources. Each string of an array is
      one test. In a single source each function test* is one test; without such functions the
      source is one test. With an entry_point, a function `check` of the tests is called with it.
    entry_point: template of the name of the function that the program must define.
    setup: template of source that runs before the program; a program without the entry_point is
      appended to it. Tests can use its names too, as setup defines them.
    score: 'fraction' of the tests passed, or 'all': 1.0 if all pass, otherwise 0.0.
    time_limit_seconds: of program and tests together; None: the limit of the sandbox.

  Raises:
    ValueError: at construction, listing every problem.
    RuntimeError: at construction, if no worker process can be started on this machine.
  """

  name: str
  input: str = '{{ sample.output_text }}'
  tests: str
  entry_point: str = ''
  setup: str = ''
  score: str = 'fraction'
  time_limit_seconds: float | None = None
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
  _sandbox: Sandbox = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    seconds = self.time_limit_seconds or self.sandbox.time_limit_seconds
    config = dataclasses.replace(self.sandbox, time_limit_seconds=seconds)
    sandbox = Sandbox({'mode': 'code', 'filename': f'<grader {self.name}>'}, config)
    object.__setattr__(self, '_sandbox', sandbox)

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    sandbox = fields.get('sandbox') or SandboxConfig()
    problems = [f'sandbox.{problem}' for problem in sandbox.problems()]
    problems += base.template_problems(fields, ('input', 'tests', 'entry_point', 'setup'))
    if fields.get('score', 'all') not in SCORES:
      hint = template.did_you_mean(fields['score'], SCORES)
      problems.append(f'score={fields["score"]!r}{hint}, need one of {", ".join(SCORES)}')
    seconds = fields.get('time_limit_seconds')
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < 1e9):
      problems.append(f'time_limit_seconds={seconds!r}, need a number > 0')
    return problems + base.threshold_problems(fields)

  @property
  def isolation(self) -> str:
    """The isolation level of the worker processes: one of isolation.LEVELS."""
    return self._sandbox.level

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order."""
    grades: dict[int, Grade] = {}  # by index into pairs
    calls, indices = [], []
    for index, (item, sample) in enumerate(pairs):
      try:
        calls.append(self._call(item, sample))
        indices.append(index)
      except template.Fault as fault:
        grades[index] = base.template_fault(self, fault)
    for index, outcome in zip(indices, self._sandbox.run(calls)):
      grades[index] = self._grade(outcome)
    return [grades[index] for index in range(len(pairs))]

  def _call(self, item, sample) -> list[bytes]:
    """Returns the JSON messages for the process of the program and for that of the tests."""
    answer, tests, entry_point, setup = template.render_all(
      [self.input, self.tests, self.entry_point, self.setup], item=item, sample=sample
    )
    sources = _test_sources(tests)
    shared = {'setup': setup, 'entry_point': entry_point.strip()}
    return [
      json.dumps({**shared, 'program': extract_program(answer)}).encode(),
      json.dumps(
        {**shared, 'tests': [tests] if sources is None else sources, 'split': sources is None}
      ).encode(),
    ]

  def _grade(self, outcome: Outcome) -> Grade:
    if outcome.kind == 'score':
      score = outcome.score if self.score == 'fraction' else float(outcome.score == 1.0)
      return Grade(score, {self.name: score}, {})
    if outcome.kind == 'tests_broken':
      return base.grader_fault(
        self, {'other_error': True, 'other_error_details': f'tests: {outcome.details}'}
      )
    return base.sandbox_fault(self, outcome.kind, outcome.details)

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the templates read."""
    return frozenset().union(
      *map(template.fields, (self.input, self.tests, self.entry_point, self.setup))
    )

  def close(self) -> None:
    """Kills the workers."""
    self._sandbox.close()


def extract_program(text: str) -> str:
  """Returns the program in an answer: the last fenced python block, else last block, else all."""
  blocks = _FENCE.findall(text)
  python = [
    body
    for language, body in blocks
    if language.strip().lower().split(' ')[0] in ('python', 'py', 'python3')
  ]
  return (python or [body for _, body in blocks] or [text])[-1]


def _test_sources(tests: str) -> list[str] | None:
  """Returns the strings of a JSON array, [] if it has other elements; None if it is no array."""
  try:
    sources = json.loads(tests)
  except (ValueError, RecursionError):
    return None
  if not isinstance(sources, list):
    return None
  return sources if all(isinstance(source, str) for source in sources) else []
