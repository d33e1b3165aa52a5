"""The configuration of a run: a group for each module. No module below this one imports Config.

A config file under configs/ returns a Config; the command line overrides its fields:
`--config.rollout.temperature=0.8`, `--config.stages[1].steps=9`.
"""

import dataclasses
import itertools
from dataclasses import field
from typing import Any, NamedTuple

from rft_jax import config_checks
from rft_jax.algorithms import ALGORITHMS, Requirements
from rft_jax.algorithms.distillation import DistillationConfig
from rft_jax.algorithms.dpo import DpoConfig
from rft_jax.algorithms.kto import KtoStageConfig
from rft_jax.algorithms.noisy_grades import NoisyGradesConfig
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.algorithms.rejection import RejectionConfig
from rft_jax.algorithms.reward_model import RewardModelConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.sandbox.pool import SandboxConfig
from rft_jax.models.attention import IMPLEMENTATIONS
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.records.checkpoint import CheckpointConfig
from rft_jax.report.report import ReportConfig
from rft_jax.rollout.credit import CreditConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.sharding import MeshConfig
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
  """The base checkpoint."""

  source: str = ''  # HF directory or hub id; required
  dtype: str = 'float32'  # of matrix products; weights and optimizer are always float32
  # The attention implementation: batched, chunked (both anywhere), cudnn or pallas (GPU), splash
  # (TPU), or auto: chosen for the backend.
  attention: str = 'auto'

  def validate(self) -> list[str]:
    problems = []
    if not self.source:
      problems.append(
        'source is empty, need a Hugging Face directory or hub id; `make demo` '
        'makes runs/rare_disease_demo/data/base'
      )
    if self.dtype not in DTYPES:
      problems.append(f'dtype={self.dtype!r}, need one of {DTYPES}')
    if self.attention not in ('auto', *IMPLEMENTATIONS):
      problems.append(f'attention={self.attention!r}, need one of {("auto", *IMPLEMENTATIONS)}')
    return problems


@dataclasses.dataclass(slots=True, kw_only=True)
class EvaluateConfig:
  """Held-out evaluation: a greedy answer and some samples for each row."""

  every: int = 20  # steps; 0: only before, between stages, and after
  rows: int = 0  # evaluate the first rows of the validation set only; 0: all
  samples_per_prompt: int = 4  # k of pass@k
  temperature: float = 1.0  # of those samples
  pass_threshold: float = 1.0  # a sample passes from this grade on

  def validate(self) -> list[str]:
    checks = (
      (self.every >= 0, f'every={self.every}, need >= 0'),
      (self.rows >= 0, f'rows={self.rows}, need >= 0 (0: all)'),
      (self.samples_per_prompt >= 1, f'samples_per_prompt={self.samples_per_prompt}, need >= 1'),
      (
        self.temperature > 0,
        f'temperature={self.temperature}, need > 0; the greedy answer is always evaluated as well',
      ),
    )
    return [problem for good, problem in checks if not good]


@dataclasses.dataclass(slots=True, kw_only=True)
class DoctorConfig:
  """The examination before training, --mode=doctor."""

  rows: int = 64  # training rows that are sampled
  samples_per_prompt: int = 8
  # No-go where at least this share of rows has the same grade in all samples.
  max_zero_variance_rows: float = 0.9

  def validate(self) -> list[str]:
    checks = (
      (self.rows >= 1, f'rows={self.rows}, need >= 1'),
      (self.samples_per_prompt >= 2, f'samples_per_prompt={self.samples_per_prompt}, need >= 2'),
      (
        0 < self.max_zero_variance_rows <= 1,
        f'max_zero_variance_rows={self.max_zero_variance_rows}, need > 0 and <= 1',
      ),
    )
    return [problem for good, problem in checks if not good]


@dataclasses.dataclass(slots=True, kw_only=True)
class Stage:
  """A part of the training with one algorithm, one optimizer and one schedule.

  Its reference policy is the policy at its start.
  """

  algorithm: str  # one of rft_jax.algorithms.ALGORITHMS
  steps: int
  data: str = ''  # rows of this stage alone; empty: data.train
  optim: OptimConfig = field(default_factory=OptimConfig)

  def validate(self) -> list[str]:
    problems = [f'optim.{problem}' for problem in self.optim.validate()]
    if self.algorithm not in ALGORITHMS:
      problems.append(f'algorithm={self.algorithm!r}, need one of {tuple(ALGORITHMS)}')
    if self.steps < 1:
      problems.append(f'steps={self.steps}, need >= 1')
    return problems


class Span(NamedTuple):
  """The steps of a stage: first + 1 .. end, counting from 1 over the whole run."""

  number: int
  first: int
  end: int


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """Everything that a run depends on."""

  seed: int = 0  # for everything random
  model: ModelConfig = field(default_factory=ModelConfig)
  data: DataConfig = field(default_factory=DataConfig)
  chat: ChatConfig = field(default_factory=ChatConfig)
  # OpenAI's grader JSON, as a dict or the path of a file. Empty where nothing is sampled: in runs
  # that learn from preferences and are evaluated on held-out pairs.
  grader: object = ''
  response_format: object = ''  # OpenAI's response_format, as a dict or the path of a file
  stages: tuple[Stage, ...] = ()
  sft: SftConfig = field(default_factory=SftConfig)
  dpo: DpoConfig = field(default_factory=DpoConfig)
  kto: KtoStageConfig = field(default_factory=KtoStageConfig)
  reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
  rejection: RejectionConfig = field(default_factory=RejectionConfig)
  distillation: DistillationConfig = field(default_factory=DistillationConfig)
  rollout: RolloutConfig = field(default_factory=RolloutConfig)
  advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
  credit: CreditConfig = field(default_factory=CreditConfig)
  objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)  # of reinforced stages
  critic: CriticConfig = field(default_factory=CriticConfig)  # of ppo
  noisy_grades: NoisyGradesConfig = field(default_factory=NoisyGradesConfig)
  update: UpdateConfig = field(default_factory=UpdateConfig)
  mesh: MeshConfig = field(default_factory=MeshConfig)
  evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
  doctor: DoctorConfig = field(default_factory=DoctorConfig)
  checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
  sandbox: SandboxConfig = field(default_factory=SandboxConfig)
  judge: JudgeConfig = field(default_factory=JudgeConfig)  # for score_model and label_model
  report: ReportConfig = field(default_factory=ReportConfig)
  notes: tuple[str, ...] = ()  # remarks of the config file, printed as warnings at the start

  def problems(self) -> list[str]:
    """Returns everything that is wrong, as 'group.field=value, need ...'; [] if nothing is."""
    problems = []
    for name, group in self.groups().items():
      if name == 'stages':
        problems += [
          f'stages[{number}].{problem}'
          for number, stage in enumerate(group)
          for problem in stage.validate()
        ]
      elif hasattr(group, 'validate'):
        problems += [f'{name}.{problem}' for problem in group.validate()]
    return problems + config_checks.problems(self)

  def validate(self) -> None:
    """Raises one ValueError with the problems of all groups. Call it after the overrides."""
    problems = self.problems()
    if problems:
      raise ValueError('\n'.join(f'config.{problem}' for problem in problems))

  def warnings(self) -> list[str]:
    """Returns what is allowed but seldom intended."""
    warnings = list(self.notes)
    if self.rollout.filtered and 'prompts' in self.learns_from():
      warnings.append(
        'rollout.top_k, top_p or min_p is set: samples then come from another '
        'distribution than the policy that is trained on them'
      )
    return warnings

  def groups(self) -> dict[str, Any]:
    """Returns the groups by name: the form in which algorithms read the config."""
    return {group.name: getattr(self, group.name) for group in dataclasses.fields(self)}

  def requirements(self, stage: Stage) -> Requirements:
    """Returns what the algorithm of a stage needs.

    Raises:
      KeyError: there is no such algorithm.
    """
    return ALGORITHMS[stage.algorithm].REQUIREMENTS

  def learns_from(self) -> list[str]:
    """Returns the kind of row of each stage: 'prompts', 'targets', 'pairs' or 'answers'."""
    return [
      self.requirements(stage).rows if stage.algorithm in ALGORITHMS else ''
      for stage in self.stages
    ]

  def ungraded(self) -> bool:
    """Returns whether nothing is sampled: there is no grader, and no stage needs one."""
    kinds = set(self.learns_from())
    return not self.grader and bool(kinds & {'pairs', 'answers'}) and 'prompts' not in kinds

  def teacher(self, stage: Stage) -> str:
    """Returns the model that a stage learns from, '' if there is none."""
    return self.requirements(stage).teacher(self.groups())

  def trains_reward_model(self, stage: Stage) -> bool:
    """Returns whether the policy is a reward model after a stage."""
    return stage.algorithm in ALGORITHMS and self.requirements(stage).trains_reward_model

  def ends_in_reward_model(self) -> bool:
    """Returns whether the result of the run is a reward model."""
    return bool(self.stages) and self.trains_reward_model(self.stages[-1])

  def total_steps(self) -> int:
    """Returns the steps of all stages."""
    return sum(stage.steps for stage in self.stages)

  def spans(self) -> list[Span]:
    """Returns the steps of each stage."""
    ends = list(itertools.accumulate(stage.steps for stage in self.stages))
    return [
      Span(number, end - stage.steps, end)
      for number, (stage, end) in enumerate(zip(self.stages, ends))
    ]
