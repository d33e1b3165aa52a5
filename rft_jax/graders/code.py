"""The `code` grader: the answer is a program, run in a sandbox against the tests of its row."""

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

  Not a type of the OpenAI API. The program is the last ```python block of input, or another block,
  or all of it. It runs in a process of its own, and the tests in another that sees its names
  (worker_code.py). A program that does not compile, raises, exits, hangs or takes too much memory
  has failed its tests: score 0, and no fault. Tests that do not compile are a grader fault.

      Code(name='runs', tests='{{ item.tests }}')                      # a text, or a list of texts
      Code(name='humaneval', setup='{{ item.prompt }}', tests='{{ item.test }}',
           entry_point='{{ item.entry_point }}')

  Fields:
    input: template of the answer.
    tests: template of Python source, or of a JSON array of such. Each text of an array is one
      test; so is each function test* of a single text, or the text itself if it has none. With an
      entry_point a function check of the tests is called with it.
    entry_point: template of the name of the function that is asked for.
    setup: template of source that comes before the program; a program without the entry_point
      continues it. Tests see its names too, as setup defines them.
    score: 'fraction' of the tests passed, or 'all': 1.0 if every one is, otherwise 0.0.
    time_limit_seconds: of program and tests together; None: that of the sandbox.

  Raises:
    ValueError: at construction, listing every problem.
    RuntimeError: at construction, if no worker can be started here.
  """

  name: str
  input: str = '{{ sample.output_text }}'
  tests: str
  entry_point: str = ''
  setup: str = ''
  score: str = 'fraction'
  time_limit_seconds: float | None = None
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
  _sandbox: Sandbox = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    seconds = self.time_limit_seconds or self.sandbox.time_limit_seconds
    config = dataclasses.replace(self.sandbox, time_limit_seconds=seconds)
    started = Sandbox({'mode': 'code', 'filename': f'<grader {self.name}>'}, config)
    object.__setattr__(self, '_sandbox', started)

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    sandbox = given.get('sandbox') or SandboxConfig()
    found = [f'sandbox.{problem}' for problem in sandbox.problems()]
    found += base.template_problems(given, ('input', 'tests', 'entry_point', 'setup'))
    if given.get('score', 'all') not in SCORES:
      hint = template.did_you_mean(given['score'], SCORES)
      found.append(f'score={given["score"]!r}{hint}, need one of {", ".join(SCORES)}')
    seconds = given.get('time_limit_seconds')
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < 1e9):
      found.append(f'time_limit_seconds={seconds!r}, need a number > 0')
    return found + base.threshold_problems(given)

  @property
  def isolation(self) -> str:
    """The level that programs run at: one of isolation.LEVELS."""
    return self._sandbox.level

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order."""
    grades: list[Grade | None] = [None] * len(pairs)
    calls, places = [], []
    for place, (item, sample) in enumerate(pairs):
      try:
        calls.append(self._call(item, sample))
        places.append(place)
      except template.Fault as fault:
        grades[place] = base.faulty(self, fault)
    for place, outcome in zip(places, self._sandbox.run(calls)):
      grades[place] = self._grade(outcome)
    return grades

  def _call(self, item, sample) -> list[bytes]:
    """Returns what the process of the answer is given, and that of the tests; in JSON."""
    answer, tests, entry_point, setup = template.render_all(
      [self.input, self.tests, self.entry_point, self.setup], item=item, sample=sample
    )
    sources = _sources(tests)
    given = {'setup': setup, 'entry_point': entry_point.strip()}
    return [
      json.dumps({**given, 'program': extract(answer)}).encode(),
      json.dumps(
        {**given, 'tests': [tests] if sources is None else sources, 'split': sources is None}
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


def extract(text: str) -> str:
  """Returns the program in an answer: its last block fenced as python, else its last, else all."""
  blocks = _FENCE.findall(text)
  python = [
    body
    for language, body in blocks
    if language.strip().lower().split(' ')[0] in ('python', 'py', 'python3')
  ]
  return (python or [body for _, body in blocks] or [text])[-1]


def _sources(tests: str) -> list[str] | None:
  """Returns the texts of a JSON array; none if it holds anything else; None if it is no array."""
  try:
    sources = json.loads(tests)
  except (ValueError, RecursionError):
    return None
  if not isinstance(sources, list):
    return None
  return sources if all(isinstance(one, str) for one in sources) else []
