"""Configuration of the rare-disease task: world, frequencies, number of cases."""

import dataclasses

from rft_jax.tasks.rare_disease.names import FINDINGS, GENES, NOISE_FINDINGS


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """The world and the number of cases. Frequencies and ranges are (lowest, highest)."""

  seed: int = 0
  train_rows: int = 4000
  validation_rows: int = 400
  genes: int = 12
  findings: int = 24  # associated with diseases
  noise_findings: int = 6  # equally frequent in all diseases
  characteristic: int = 3  # characteristic findings per disease
  shared: int = 3  # findings per disease that are characteristic of its look-alikes
  look_alikes: int = 4  # diseases per group of similar diseases
  noise_listed: int = 2  # diseases that the textbook wrongly lists each noise finding under
  characteristic_frequency: tuple[float, float] = (0.5, 0.8)
  shared_frequency: tuple[float, float] = (0.12, 0.35)
  background_frequency: tuple[float, float] = (0.04, 0.1)
  noise_frequency: tuple[float, float] = (0.25, 0.45)
  noted_present: float = 0.8
  noted_absent: float = 0.1
  present_range: tuple[int, int] = (3, 7)
  absent_range: tuple[int, int] = (0, 4)
  read_range: tuple[int, int] = (2, 3)  # findings that a warm-up solution uses
  corrupt: float = 0.0  # fraction of the training cases whose gene is replaced by a wrong one

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = [
      (self.train_rows >= 1, f'train_rows={self.train_rows}, need >= 1'),
      (self.validation_rows >= 1, f'validation_rows={self.validation_rows}, need >= 1'),
      (2 <= self.genes <= len(GENES), f'genes={self.genes}, need 2 to {len(GENES)}'),
      (1 <= self.findings <= len(FINDINGS), f'findings={self.findings}, need 1 to {len(FINDINGS)}'),
      (
        0 <= self.noise_findings <= len(NOISE_FINDINGS),
        f'noise_findings={self.noise_findings}, need 0 to {len(NOISE_FINDINGS)}',
      ),
      (
        1 <= self.characteristic <= self.findings,
        f'characteristic={self.characteristic}, need 1 to findings={self.findings}',
      ),
      (self.shared >= 0, f'shared={self.shared}, need >= 0'),
      (self.look_alikes >= 1, f'look_alikes={self.look_alikes}, need >= 1'),
      (
        0 <= self.noise_listed <= self.genes,
        f'noise_listed={self.noise_listed}, need 0 to genes={self.genes}',
      ),
      (
        self.noted_present > 0
        and self.noted_absent > 0
        and self.noted_present + self.noted_absent <= 1,
        f'noted_present={self.noted_present} noted_absent={self.noted_absent}, '
        'need both above 0, sum at most 1',
      ),
      (0 <= self.corrupt <= 1, f'corrupt={self.corrupt}, need 0 to 1'),
      (
        1 <= self.read_range[0] <= self.read_range[1],
        f'read_range={self.read_range}, need 1 <= first <= second',
      ),
    ]
    for field in ('characteristic', 'shared', 'background', 'noise'):
      low, high = getattr(self, f'{field}_frequency')
      checks.append(
        (0 < low <= high < 1, f'{field}_frequency={(low, high)}, need 0 < first <= second < 1')
      )
    for field in ('present_range', 'absent_range'):
      low, high = getattr(self, field)
      checks.append((0 <= low <= high, f'{field}={(low, high)}, need 0 <= first <= second'))
    return [problem for valid, problem in checks if not valid]
