"""What an algorithm is, what it requires of a run, and what a stage gives it to work with."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rft_jax.types import Batch, Example, TrainState


class StepBatch(NamedTuple):
  """What one training step learns from."""

  batch: Batch | None  # None: nothing can be learnt from this step
  metrics: dict  # with 'step_tokens'
  algorithm_state: Any = None  # the next TrainState.algorithm_state; None: unchanged


class Algorithm(NamedTuple):
  """A way to learn: how the batch of a step is made, and the loss that is minimised on it.

  collect(state, step) -> StepBatch. loss(statistics, batch) -> (terms, metrics), see
  rft_jax.training.update.
  """

  collect: Callable[[TrainState, int], StepBatch]
  loss: Callable
  temperature: float = 1.0  # the logits are divided by it in the loss
  updates_per_batch: int = 1
  # Whether a group whose advantages are all 0 has no gradient, whatever its tokens are.
  skip_zero_advantages: bool = False
  # Which of 'policy' and 'critic' are trained at a step.
  trained_models: Callable[[int], tuple[str, ...]] = lambda step: ('policy',)
  # What is measured on held-out rows in addition to the grades: state -> {metric: f64[rows]}.
  held_out_metrics: Callable[[TrainState], dict] | None = None
  is_language_model: bool = True  # whether the policy still generates text that can be graded


def prompts_per_step(groups: dict) -> int:
  """Returns the rows that a step of an algorithm with rollouts takes."""
  return groups['rollout'].prompts_per_step


def rollout_summary(groups: dict) -> str:
  """Returns what a step of an algorithm with rollouts takes, in words."""
  P, G = groups['rollout'].prompts_per_step, groups['rollout'].samples_per_prompt
  return (
    f'{P} prompts x {G} samples = {P * G} sequences a step, '
    f'{groups["update"].updates_per_batch} update(s) of them'
  )


class Requirements(NamedTuple):
  """What a stage of an algorithm needs, computed from the groups of the config.

  `groups` is the config as {group name: its dataclass}.
  """

  # What it learns from: 'prompts' (it samples and grades), 'targets' (each row holds the answer
  # to learn), 'pairs' (chosen and rejected) or 'answers' (single ones, labelled good or bad).
  rows: str
  label: str = 'reinforcement'  # what the report calls a stage of it
  rows_per_step: Callable[[dict], int] = prompts_per_step
  step_summary: Callable[[dict], str] = rollout_summary
  # Forward passes over the sequences of one row in a step, for the cost estimate: an update is
  # three (forward, and twice as much backward). For algorithms with rollouts: of one sample.
  passes: Callable[[dict], float] = lambda groups: 3.0
  # The values of credit.level that it can assign; () where an advantage has no part in it.
  credit_levels: tuple[str, ...] = ()
  reference: Callable[[dict], bool] = lambda groups: False  # whether it needs a reference policy
  critic: Callable[[dict], str | None] = lambda groups: None  # one of models.CRITIC_KINDS
  critic_optim: Callable = lambda groups, stage_optim: stage_optim  # the critic's OptimConfig
  # Other models that it reads, as HF directory or hub id; '' for none. Their tokenizer must be the
  # policy's, and their positions limit the length of a row.
  critic_source: Callable[[dict], str] = lambda groups: ''  # a reward model the critic starts from
  teacher: Callable[[dict], str] = lambda groups: ''
  trains_reward_model: bool = False  # afterwards the policy generates no text: the last stage only
  initial_state: Callable[[], Any] = lambda: None  # of TrainState.algorithm_state
  # (groups, steps of the stage) -> what does not fit together, as 'group.field=value, need ...'
  problems: Callable[[dict, int], list[str]] = lambda groups, steps: []


class StageContext(NamedTuple):
  """What a stage gives to its algorithm."""

  groups: dict[str, Any]  # the config's groups by name: 'objective', 'rollout', 'advantage', ...
  seed: int  # of the data order
  first_step: int  # the step at which the stage begins
  examples: list[Example]
  validation: list[Example]
  # (state) -> the reference policy at that state; () -> the one at the start of the stage
  reference: Callable
  rollout: Callable  # (policy, examples, occurrences, step) -> Rollout
  greedy: Callable  # like rollout, one completion a prompt at temperature 0
  # (model, batch, temperature=that of the rollout) -> scoring.TokenScores
  score: Callable
  values: Callable  # (state, batch) -> the critic's values f32[B, T]
  record: Callable  # (step, Rollout): writes the samples of the step to episodes/
  workdir: Any = None  # where reference log-probs are cached; None: they are not
  # (policy, graded groups, step) -> credit.StepRewards; None: credit goes to whole samples
  credit: Callable | None = None
  load: Any = None  # (HF directory or hub id) -> another policy on the mesh, read-only
