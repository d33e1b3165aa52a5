"""The whole run: one group for each room. Nothing below this file ever sees Config.

A config file under configs/ returns a Config; the command line overrides its fields:
`--config.rollout.temperature=0.8`, `--config.stages[1].steps=9`.
"""

import dataclasses
import itertools
from dataclasses import field
from typing import NamedTuple

from rft_jax.algorithms import ALGORITHMS
from rft_jax.algorithms.distillation import DistillationConfig
from rft_jax.algorithms.dpo import DpoConfig
from rft_jax.algorithms.kto import KtoStageConfig
from rft_jax.algorithms.noisy_grades import NoisyGradesConfig, corrects
from rft_jax.algorithms.ppo import CriticConfig
from rft_jax.algorithms.rejection import RejectionConfig
from rft_jax.algorithms.reward_model import RewardModelConfig
from rft_jax.algorithms.sft import SftConfig
from rft_jax.data.chat import ChatConfig
from rft_jax.data.rows import DataConfig
from rft_jax.graders.judges.judges import JudgeConfig
from rft_jax.graders.sandbox.pool import SandboxConfig
from rft_jax.models.attention import IMPLEMENTATIONS
from rft_jax.objectives.advantages import AdvantageConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.records.checkpoint import CheckpointConfig
from rft_jax.report.report import ReportConfig
from rft_jax.rollout import credit
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
  # How it is computed: batched, chunked (both anywhere), cudnn or pallas (GPU), splash (TPU), or
  # auto: chosen for the backend.
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
  """Held-out evaluation: every row greedily, and some samples a row."""

  every: int = 20  # steps; 0: only before, between stages, and after
  rows: int = 0  # the first so many validation rows; 0: all
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
        f'temperature={self.temperature}, need > 0; the greedy answer is '
        'always evaluated beside the samples',
      ),
    )
    return [problem for good, problem in checks if not good]


@dataclasses.dataclass(slots=True, kw_only=True)
class DoctorConfig:
  """The examination before training, --mode=doctor."""

  rows: int = 64  # of those to learn from
  samples_per_prompt: int = 8  # of each
  max_zero_variance_rows: float = 0.9  # no-go where this share of rows has the same grade in all samples

  def validate(self) -> list[str]:
    checks = (
      (self.rows >= 1, f'rows={self.rows}, need >= 1'),
      (self.samples_per_prompt >= 2, f'samples_per_prompt={self.samples_per_prompt}, need >= 2'),
      (0 < self.max_zero_variance_rows <= 1, f'max_zero_variance_rows={self.max_zero_variance_rows}, need > 0 and <= 1'),
    )
    return [problem for good, problem in checks if not good]


@dataclasses.dataclass(slots=True, kw_only=True)
class Stage:
  """A stretch of training with one algorithm, one optimizer and one schedule.

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
  """Where a stage lies in the run: steps first + 1 .. end, counting from 1."""

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
  # that learn from preferences, and are measured by held-out pairs.
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
  noisy_grades: NoisyGradesConfig = field(default_factory=NoisyGradesConfig)  # where grades may be wrong
  update: UpdateConfig = field(default_factory=UpdateConfig)
  mesh: MeshConfig = field(default_factory=MeshConfig)
  evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
  doctor: DoctorConfig = field(default_factory=DoctorConfig)
  checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
  sandbox: SandboxConfig = field(default_factory=SandboxConfig)
  judge: JudgeConfig = field(default_factory=JudgeConfig)  # for score_model and label_model
  report: ReportConfig = field(default_factory=ReportConfig)
  notes: tuple[str, ...] = ()  # what the maker of this config has to say; told at the start

  def problems(self) -> list[str]:
    """Returns everything that is wrong, as 'group.field=value, need ...'; [] if nothing is."""
    found = []
    for group in dataclasses.fields(self):
      value = getattr(self, group.name)
      if group.name == 'stages':
        found += [
          f'stages[{n}].{problem}' for n, stage in enumerate(value) for problem in stage.validate()
        ]
      elif hasattr(value, 'validate'):
        found += [f'{group.name}.{problem}' for problem in value.validate()]
    return found + self._impossible()

  def validate(self) -> None:
    """Raises one ValueError with the problems of all groups. Call it after the overrides."""
    problems = self.problems()
    if problems:
      raise ValueError('\n'.join(f'config.{problem}' for problem in problems))

  def _impossible(self):
    """Fields that are right alone and wrong together."""
    if not self.stages:
      return ['stages is empty, need at least one Stage(algorithm=..., steps=...)']
    algorithms = [stage.algorithm for stage in self.stages]
    reinforced, rollout = 'prompts' in self.learns_from(), self.rollout
    trunk = [n for n, stage in enumerate(self.stages[:-1]) if stage.algorithm == 'reward_model']
    checks = (
      (
        not trunk,
        f"stages[{(trunk or [0])[0]}].algorithm='reward_model' is not the last "
        'stage, need it there: the policy becomes the trunk of the reward model and is a language '
        'model no more; train from its export in a run of its own',
      ),
      (
        self.grader or self.ungraded(),
        "grader is empty, need OpenAI's grader JSON (a dict or a "
        'path): held-out rows are graded with it',
      ),
      (
        'grpo' not in algorithms or rollout.samples_per_prompt >= 2,
        f'rollout.samples_per_prompt={rollout.samples_per_prompt}, need >= 2 for grpo: a group of '
        'one has no one to be compared with',
      ),
      (
        not reinforced or rollout.temperature > 0,
        f'rollout.temperature={rollout.temperature}, need > 0 for grpo: greedy samples of a '
        'prompt are all the same',
      ),
      (
        not reinforced or self.update.updates_per_batch <= rollout.prompts_per_step,
        f'update.updates_per_batch={self.update.updates_per_batch}, need <= '
        f'rollout.prompts_per_step={rollout.prompts_per_step}: each update takes whole groups',
      ),
      (
        self.objective.policy_loss.ratio_level != 'reasoning_step' or self.credit.level == 'reasoning_step',
        f"objective.policy_loss.ratio_level='reasoning_step' with credit.level={self.credit.level!r}, need "
        "credit.level='reasoning_step': only then completions are split into steps",
      ),
      (
        self.credit.level != 'reasoning_step'
        or not self.objective.kl_in_reward
        or self.advantage.estimator != 'reinforce_plus_plus',
        "credit.level='reasoning_step' with objective.kl_place='reward' and advantage.estimator="
        "'reinforce_plus_plus': the one gives a return to each step, the other to each token",
      ),
      (
        self.advantage.estimator != 'gdpo'
        or not (
          corrects(self.noisy_grades) or self.objective.kl_in_reward or self.advantage.overlong_buffer
        ),
        "advantage.estimator='gdpo' compares the components of a grade, and noisy_grades.clip, "
        "noisy_grades.flip_rate_*, objective.kl_place='reward' and advantage.overlong_buffer change the "
        'grade as a whole: use one of the two',
      ),
      *(
        (
          stage.algorithm != 'ppo' or self.critic.warmup_steps < stage.steps,
          f'critic.warmup_steps={self.critic.warmup_steps} in stages[{n}] of {stage.steps} steps, '
          'need fewer: the policy would never learn',
        )
        for n, stage in enumerate(self.stages)
      ),
      (
        not reinforced
        or rollout.quantization == 'none'
        or self.objective.correction.correction != 'none',
        f'rollout.quantization={rollout.quantization!r} with '
        "objective.correction.correction='none', need a correction ('tis' is usual): samples of a "
        "rounded policy would count as the policy's own",
      ),
      (
        not reinforced
        or self.objective.entropy.covariance != 'kl_cov'
        or self.update.updates_per_batch > 1,
        "objective.entropy.covariance='kl_cov' with update.updates_per_batch=1, need more: it "
        'holds tokens where they were before the first update, which begins there',
      ),
    )
    groups = {group.name: getattr(self, group.name) for group in dataclasses.fields(self)}
    return (
      [problem for good, problem in checks if not good]
      + credit.problems(self.credit, algorithms)
      + [
        problem
        for name in dict.fromkeys(algorithms)
        if name in ALGORITHMS
        for problem in ALGORITHMS[name].REQUIREMENTS.problems(groups)
      ]
    )

  def warnings(self) -> list[str]:
    """Returns what is possible but seldom meant."""
    found = list(self.notes)
    if self.rollout.filtered and 'prompts' in self.learns_from():
      found.append(
        'rollout.top_k, top_p or min_p is set: samples then come from another '
        'distribution than the policy that is trained on them'
      )
    return found

  def learns_from(self) -> list[str]:
    """Returns for each stage what a row brings: 'prompts', 'targets', 'pairs' or 'answers'."""
    return [
      ALGORITHMS[stage.algorithm].REQUIREMENTS.rows if stage.algorithm in ALGORITHMS else ''
      for stage in self.stages
    ]

  def ungraded(self) -> bool:
    """Returns whether nothing is sampled: no grader, and none needed."""
    kinds = set(self.learns_from())
    return not self.grader and bool(kinds & {'pairs', 'answers'}) and 'prompts' not in kinds

  def ends_in_reward_model(self) -> bool:
    return bool(self.stages) and self.stages[-1].algorithm == 'reward_model'

  def total_steps(self) -> int:
    return sum(stage.steps for stage in self.stages)

  def spans(self) -> list[Span]:
    """Returns where each stage lies in the count of steps."""
    ends = list(itertools.accumulate(stage.steps for stage in self.stages))
    return [
      Span(number, end - stage.steps, end)
      for number, (stage, end) in enumerate(zip(self.stages, ends))
    ]
