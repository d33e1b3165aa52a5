"""What an algorithm is, and what it is given."""
from typing import Any, Callable, NamedTuple

from rft_jax.types import Batch, Example, TrainState, Tree


class Algorithm(NamedTuple):
  """A way to learn: how a step's batch is made, and what is minimised on it.

  collect(state, step) -> (Batch, or None if nothing can be learnt from this step; metrics, of
  which 'step_tokens' is one). loss(statistics, batch) -> (terms, metrics), see rft_jax.update.
  """
  collect: Callable[[TrainState, int], tuple[Batch | None, dict]]
  loss: Callable
  temperature: float = 1.0  # by which the logits are divided in the loss
  updates_per_batch: int = 1
  # Whether groups of which all advantages are 0 have no gradient, whatever their tokens are.
  zero_advantages_teach_nothing: bool = False


class Room(NamedTuple):
  """What a stage hands to its algorithm."""
  groups: dict[str, Any]  # the config's groups by name: 'grpo', 'rollout', 'advantage', ...
  seed: int  # of the data order
  first_step: int  # the step at which the stage begins
  examples: list[Example]
  reference: Tree | None  # the policy at the start of the stage; None unless asked for
  rollout: Callable  # (policy, examples, occurrences, step) -> Rollout
  score: Callable  # (model, batch) -> log-probs f32[B, T]
  keep: Callable  # (step, Rollout): puts what the step sampled on record
