"""What the doctor reports: findings with a verdict, and the numbers behind them."""

from typing import Any, NamedTuple

LABELS = {'no-go': 'NO-GO', 'warning': 'warn ', 'fine': 'ok   '}  # verdicts, the gravest first


class Finding(NamedTuple):
  """One result of the examination."""

  verdict: str  # 'no-go': do not train; 'warning': worth a thought; 'fine': for the record
  text: str


class Examination(NamedTuple):
  """All findings, and the numbers behind them."""

  findings: list[Finding]
  values: dict[str, Any]

  @property
  def go(self) -> bool:
    """Returns whether nothing speaks against training."""
    return not any(finding.verdict == 'no-go' for finding in self.findings)

  def json(self) -> dict[str, Any]:
    """Returns the content of doctor.json."""
    texts = lambda verdict: [
      finding.text for finding in self.findings if finding.verdict == verdict
    ]
    return {
      'verdict': 'go' if self.go else 'no-go',
      'reasons': texts('no-go'),
      'warnings': texts('warning'),
      'fine': texts('fine'),
      **self.values,
    }

  def text(self) -> str:
    """Returns the findings, the gravest first, and the verdict in the last line."""
    lines = [
      f'{label}  {finding.text}'
      for verdict, label in LABELS.items()
      for finding in self.findings
      if finding.verdict == verdict
    ]
    return '\n'.join([*lines, '', f'verdict: {"go" if self.go else "no-go"}'])


def from_input_error(message: str) -> Examination:
  """Returns the examination of a run that cannot be built, a finding for each problem."""
  problems = [line.strip() for line in message.splitlines()]
  return Examination(
    [Finding('no-go', problem) for problem in problems if problem and problem != 'data:'], {}
  )
