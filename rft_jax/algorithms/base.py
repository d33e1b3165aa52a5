"""What an algorithm is, and what it is given."""
from typing import Any, Callable, NamedTuple

from rft_jax.data import order
from rft_jax.types import Batch, Example, TrainState, Tree


class Collected(NamedTuple):
  """What a step learns from."""
  batch: Batch | None  # None: nothing can be learnt from this step
  metrics: dict  # 'step_tokens' is one
  memory: dict | None = None  # the next TrainState.memory; None: as it was


class Algorithm(NamedTuple):
  """A way to learn: how a step's batch is made, and what is minimised on it.

  collect(state, step) -> Collected. loss(statistics, batch) -> (terms, metrics), see
  rft_jax.update.
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


class Room(NamedTuple):
  """What a stage hands to its algorithm."""
  groups: dict[str, Any]  # the config's groups by name: 'objective', 'rollout', 'advantage', ...
  seed: int  # of the data order
  first_step: int  # the step at which the stage begins
  examples: list[Example]
  validation: list[Example]
  reference: Tree | None  # the policy at the start of the stage; None unless asked for
  rollout: Callable  # (policy, examples, occurrences, step) -> Rollout
  score: Callable  # (model, batch) -> update.Scored: log-probs and entropies f32[B, T]
  keep: Callable  # (step, Rollout): puts what the step sampled on record
  load: Callable | None = None  # HF directory or hub id -> another policy on the mesh, read-only


def sample(room: Room, policy: Tree, step: int) -> tuple[Any, dict]:
  """Returns (the Rollout of a step's prompts, its metrics), put on record."""
  count = room.groups['rollout'].prompts_per_step
  start = (step - room.first_step) * count
  rows = order.rows_at(room.seed, start, count, len(room.examples))
  sampled = room.rollout(policy, [room.examples[row] for row in rows],
                         list(range(start, start + count)), step)
  room.keep(step, sampled)
  return sampled, sampled.metrics | {'epoch': (start + count) / len(room.examples)}
