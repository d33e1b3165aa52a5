"""What an algorithm is, and what it is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rft_jax.types import Batch, Example, TrainState


class Collected(NamedTuple):
  """What a step learns from."""

  batch: Batch | None  # None: nothing can be learnt from this step
  metrics: dict  # 'step_tokens' is one
  memory: dict | None = None  # the next TrainState.memory; None: as it was


class Algorithm(NamedTuple):
  """A way to learn: how a step's batch is made, and what is minimised on it.

  collect(state, step) -> Collected. loss(statistics, batch) -> (terms, metrics), see
  rft_jax.training.update.
  """

  collect: Callable[[TrainState, int], Collected]
  loss: Callable
  temperature: float = 1.0  # by which the logits are divided in the loss
  updates_per_batch: int = 1
  # Whether groups of which all advantages are 0 have no gradient, whatever their tokens are.
  zero_advantages_teach_nothing: bool = False
  # Which of 'policy' and 'critic' the updates of a step train.
  trains: Callable[[int], tuple[str, ...]] = lambda step: ('policy',)
  # What it measures on held-out rows beside the grades: state -> {metric: f64[rows]}; None: none.
  held_out: Callable[[TrainState], dict] | None = None
  answers: bool = True  # whether the policy is a language model, whose answers can be graded


class Demands(NamedTuple):
  """What a stage of an algorithm demands, by the groups of the config."""

  # What it learns from: 'prompts' (it samples and grades), 'targets' (a row brings the answer to
  # learn), 'pairs' (chosen and rejected) or 'answers' (single ones, marked good or bad).
  rows: str
  reference: Callable[[dict], bool] = lambda groups: False  # whether it is compared with a policy
  critic: Callable[[dict], str | None] = lambda groups: None  # one of models.CRITIC_KINDS
  critic_optim: Callable = lambda groups, of_stage: of_stage  # its OptimConfig
  problems: Callable[[dict], list[str]] = lambda groups: []  # with what other groups ask for


class Room(NamedTuple):
  """What a stage hands to its algorithm."""

  groups: dict[str, Any]  # the config's groups by name: 'objective', 'rollout', 'advantage', ...
  seed: int  # of the data order
  first_step: int  # the step at which the stage begins
  examples: list[Example]
  validation: list[Example]
  # (state) -> the reference policy, where the algorithm has asked for one; () -> that of the start
  reference: Callable
  rollout: Callable  # (policy, examples, occurrences, step) -> Rollout
  # (model, batch, temperature=the sampler's) -> update.Scored: log-probs and entropies f32[B, T]
  score: Callable
  values: Callable  # (state, batch) -> the critic's values f32[B, T]
  greedy: Callable  # as rollout, with one completion of each prompt, at temperature 0
  keep: Callable  # (step, Rollout): puts what the step sampled on record
  folder: Any = None  # the workdir, for what is dear to compute again; None: nothing is kept
  # (policy, graded groups, step) -> credit.StepRewards; None: credit goes to whole samples
  credit: Callable | None = None
  load: Callable | None = None  # HF directory or hub id -> another policy on the mesh, read-only
