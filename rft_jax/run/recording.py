"""What a run writes during training: metrics, samples, events, evaluations, checkpoints."""

import contextlib
import pathlib
import time
from typing import Any, NamedTuple

from rft_jax import graders
from rft_jax.algorithms import noisy_grades
from rft_jax.algorithms.rl_batch import RLState
from rft_jax.bootstrap import intervals
from rft_jax.config import Config
from rft_jax.records import episodes, excluded_rows
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.records.events import Events, GradedSamples
from rft_jax.records.metrics import Metrics
from rft_jax.records.progress import Progress
from rft_jax.run import build
from rft_jax.run.evaluate import Evaluation
from rft_jax.types import TrainState


class RunContext(NamedTuple):
  """What a run writes to and reads from while it trains."""

  config: Config
  workdir: pathlib.Path
  components: build.RunComponents
  checkpoints: Checkpoints
  metrics: Metrics
  events: Events
  progress: Progress
  evaluate: Any  # policy -> Evaluation
  samples: dict[int, GradedSamples]  # of the newest step alone, by its number

  def record_samples(self, step: int, rollout) -> None:
    """Writes the samples of a step (counting from 0) to episodes/."""
    episodes.write(self.workdir, step + 1, rollout.episodes())
    self.samples[step + 1] = GradedSamples(rollout.episodes(), rollout.counts)


class HeldOut(NamedTuple):
  """A held-out evaluation, and how long it took."""

  evaluation: Evaluation | None = None  # None: not evaluated
  seconds: float = 0.0

  @property
  def metric(self) -> float | None:
    """Returns what checkpoints are ranked by: the held-out grade, else the pair accuracy."""
    values = self.evaluation.values if self.evaluation else {}
    ranked_by = values.get('grade') or values.get('preference/accuracy') or {}
    return ranked_by.get('mean')


@contextlib.contextmanager
def open_records(config, workdir, components, checkpoints, evaluate, state, *, quiet, began):
  """Opens the files that a run appends to, cut back to the step it continues from.

  Yields:
    The RunContext.
  """
  episodes.truncate(workdir, state.step + 1)
  episodes.truncate(workdir / 'evaluations', state.step + 1)
  next_evaluation = state.step + 1 if state.step else 0
  with (
    Metrics(workdir, resume_step=state.step + 1, resume_evaluation=next_evaluation) as metrics,
    Events(workdir, resume_step=state.step + 1) as events,
    Progress(config.total_steps(), quiet, began=began) as progress,
  ):
    events.write_message(
      f'The run continues from step {state.step}' if state.step else 'The run has started'
    )
    yield RunContext(
      config, workdir, components, checkpoints, metrics, events, progress, evaluate, {}
    )


def record_step(run: RunContext, stage, state: TrainState, values: dict, tokens: int) -> None:
  """Writes the metrics of a step, the rows excluded from training, and the progress line."""
  run.metrics.write(state.step, values | {'num_tokens': tokens, 'stage': stage.span.number})
  records = []  # a stage without rollouts excludes no rows, also not those of the stage before
  if isinstance(state.algorithm_state, RLState):
    records = noisy_grades.excluded_rows(state.algorithm_state.noisy_grades)
  excluded_rows.write(run.workdir, records)
  run.progress.update(state.step, stage=stage.name, values=values)


def evaluate(run: RunContext, stage, state: TrainState) -> HeldOut:
  """Evaluates the policy on the held-out rows, and writes the result and its samples."""
  began = time.monotonic()
  if stage.algorithm.is_language_model:
    result = run.evaluate(state.policy)
  else:
    result = Evaluation({}, len(run.components.validation), [], None)
  if stage.algorithm.held_out_metrics is not None:
    measured = intervals(stage.algorithm.held_out_metrics(state))
    result = result._replace(values=result.values | measured)
  if not result.values:  # no grader, and an algorithm that measures nothing itself
    return HeldOut()
  run.metrics.write_evaluation(state.step, 'validation', result.rows, result.values)
  if result.sampled is not None:
    samples = result.greedy + result.sampled.episodes()
    episodes.write(
      run.workdir / 'evaluations',
      state.step,
      [episode._replace(policy_step=state.step) for episode in samples],
    )
  held_out = HeldOut(result)
  run.progress.set_grade(held_out.metric)
  return held_out._replace(seconds=time.monotonic() - began)


def record_events(run: RunContext, step: int, values: dict, held_out: HeldOut) -> None:
  """Appends the metrics event of a step to events.jsonl."""
  sampled = held_out.evaluation and held_out.evaluation.sampled
  grader = run.components.grader
  sampling, training = values['seconds/collect'], values['seconds/update']
  run.events.write_metrics(
    step,
    run.config.total_steps(),
    graders.grader_infos(grader) if grader else (),
    train=run.samples.pop(step, None),
    valid=sampled and GradedSamples(sampled.episodes(), sampled.counts),
    loss=values.get('loss'),
    seconds={
      'eval': held_out.seconds,
      'sampling': sampling,
      'training': training,
      'full_iteration': held_out.seconds + sampling + training,
    },
  )


def save_checkpoint(run: RunContext, stage, state: TrainState, held_out: HeldOut, tokens) -> None:
  """Saves the state, ranked by the held-out metric.

  The reward model of a last stage is not ranked against the policies before it.
  """
  config = run.config
  ranked = state.step > config.spans()[-1].first or not config.ends_in_reward_model()
  run.checkpoints.save(
    state.step,
    state,
    stage=stage.span.number,
    metric=held_out.metric if ranked else None,
    position={'num_tokens': tokens},
  )
  run.events.write_message(f'Checkpoint created at step {state.step}', step=state.step)
