"""Checkpoints of a run (Orbax): save, restore and prune policy, optimizer and critic.

checkpoints/
  step_000050/           checkpoint.json, policy/, optimizer/, critic/ where there is one
  reference_stage_1/     checkpoint.json, policy/: the reference policy of stage 1, which is
                         the policy at its start; never pruned, never overwritten
  reference_stage_1_step_000040/    the reference policy of stage 1 from step 40 on
"""

import dataclasses
import math
import pathlib
import re
import shutil

import jax

from rft_jax.records import checkpoint_files
from rft_jax.types import TrainState, Tree


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
  """How often to save, and which checkpoints to keep: the best and the last ones."""

  every: int = 50  # steps between saves; 0: at the end of a stage only
  keep_best: int = 3  # with the highest held-out grade
  keep_last: int = 1  # the newest, evaluated or not

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = (
      (self.every >= 0, f'every={self.every}, need >= 0'),
      (self.keep_best >= 0, f'keep_best={self.keep_best}, need >= 0'),
      (self.keep_last >= 1, f'keep_last={self.keep_last}, need >= 1: a run continues from it'),
    )
    return [problem for good, problem in checks if not good]


class MissingCheckpoint(LookupError):
  """There is no such checkpoint. The message lists those that exist."""


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Arrays are saved from any mesh and restored onto the mesh of the target, bit for bit. Every
  process of a multi-host run makes the same calls, on a shared directory.
  """

  def __init__(self, directory: str | pathlib.Path, config: CheckpointConfig | None = None):
    self.directory = pathlib.Path(directory).absolute()  # Orbax takes no relative paths
    self.config = CheckpointConfig() if config is None else config

  # ---------------------------------------------------------------- listing

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, ascending."""
    matches = (
      re.fullmatch(r'step_(\d+)', path.name) for path in checkpoint_files.folders(self.directory)
    )
    return sorted(int(match[1]) for match in matches if match)

  def latest(self) -> int | None:
    """Returns the newest step; None without checkpoints."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the highest metric (of equals the first), else the newest."""
    steps = self._steps_by_metric()
    return steps[0] if steps else self.latest()

  def resolve(self, which: int | str) -> int:
    """Returns the step that 'last', 'best' or a number (also as text) stands for.

    Raises:
      MissingCheckpoint: there is no such step; lists those that exist.
    """
    steps = self.steps()
    named = {'last': self.latest, 'best': self.best}
    if not steps:
      raise MissingCheckpoint(
        f'{self.directory} holds no checkpoint (need {which!r}); '
        'train first, or give the workdir of another run'
      )
    if which in named:
      step = named[which]()
      assert step is not None  # it is None only without steps
      return step
    if not str(which).isdecimal():
      raise MissingCheckpoint(f"checkpoint {which!r}: need 'best', 'last' or a step")
    if int(which) not in steps:
      raise MissingCheckpoint(
        f'{self.directory} holds no checkpoint of step {which}; '
        f'there are {", ".join(map(str, steps))}'
      )
    return int(which)

  def metadata(self, which: int | str) -> dict:
    """Returns {'step', 'stage', 'metric', 'position', 'algorithm_state'} of one checkpoint."""
    return checkpoint_files.read_metadata(self._step_folder(self.resolve(which)))

  # ---------------------------------------------------------------- saving

  def save(
    self,
    step: int,
    state: TrainState,
    *,
    stage: int,
    metric: float | None = None,
    position: dict | None = None,
  ) -> None:
    """Saves a state, then removes the checkpoints that are neither among the best nor the last.

    Args:
      step: of the checkpoint; one of the same step is replaced.
      state: policy, optimizer and critic, on any mesh, and the state of the algorithm.
      stage: the number of the stage that the optimizer belongs to.
      metric: held-out grade, higher is better; None or not finite: not evaluated.
      position: of the run in its data and tokens; any small JSON.
    """
    metric = float(metric) if metric is not None and math.isfinite(metric) else None
    metadata = {
      'step': int(step),
      'stage': int(stage),
      'metric': metric,
      'position': position,
      'algorithm_state': _as_json(state.algorithm_state),
    }
    checkpoint_files.write(
      self._step_folder(step),
      metadata,
      {'policy': state.policy, 'optimizer': state.optimizer, 'critic': state.critic},
    )
    if jax.process_index() == 0:
      for pruned in set(self.steps()) - self._steps_to_keep():
        checkpoint_files.remove(self._step_folder(pruned))
      for folder in self._unneeded_references(stage):
        checkpoint_files.remove(folder)
    checkpoint_files.wait_for_all_processes('pruned')

  def save_reference(self, stage: int, policy: Tree, step: int | None = None) -> None:
    """Saves the policy that a stage starts with, or the one that replaces it at a step.

    One that exists already stays as it is.
    """
    if not self.has_reference(stage, step):
      metadata = {'stage': int(stage), 'step': step}
      checkpoint_files.write(self._reference_folder(stage, step), metadata, {'policy': policy})

  def clear(self) -> None:
    """Removes the references of a run that never saved a checkpoint, and unfinished saves.

    Raises:
      ValueError: there are checkpoints.
    """
    if self.steps():
      raise ValueError(f'{self.directory} holds checkpoints; they are not removed')
    if jax.process_index() == 0:
      for folder in checkpoint_files.folders(self.directory):
        shutil.rmtree(folder)
    checkpoint_files.wait_for_all_processes('cleared')

  # ---------------------------------------------------------------- restoring

  def restore(self, which: int | str, like: TrainState) -> TrainState:
    """Returns a saved state, its arrays placed as in `like`.

    Args:
      which: a step, 'last' or 'best'.
      like: a TrainState of jax.ShapeDtypeStructs with shardings, or of arrays; from
        jax.eval_shape without shardings the arrays go to the first device. Its step is ignored.

    Raises:
      MissingCheckpoint: there is no such step.
      MismatchedCheckpoint: leaves are missing, unknown, or of another shape or dtype; all named.
    """
    folder = self._step_folder(self.resolve(which))
    trees = {'policy': like.policy, 'optimizer': like.optimizer, 'critic': like.critic}
    restored = checkpoint_files.restore(folder, trees)
    metadata = checkpoint_files.read_metadata(folder)
    return TrainState(metadata['step'], algorithm_state=metadata['algorithm_state'], **restored)

  def restore_policy(self, which: int | str, like: Tree) -> Tree:
    """Returns the policy alone: for evaluation, export, or another run that starts from it."""
    return self._restore_tree(self._step_folder(self.resolve(which)), 'policy', like)

  def restore_critic(self, which: int | str, like: Tree) -> Tree:
    """Returns the critic alone: the head of a reward model."""
    return self._restore_tree(self._step_folder(self.resolve(which)), 'critic', like)

  def has_reference(self, stage: int, step: int | None = None) -> bool:
    """Returns whether the reference of a stage, or its later one of a step, has been saved."""
    return self._reference_folder(stage, step).is_dir()

  def restore_reference(self, stage: int, like: Tree, step: int | None = None) -> Tree:
    """Returns the policy that a stage started with, or the later reference of a step."""
    folder = self._reference_folder(stage, step)
    if not self.has_reference(stage, step):
      names = [path.name for path in checkpoint_files.folders(self.directory)]
      references = sorted(name for name in names if name.startswith('reference_'))
      raise MissingCheckpoint(
        f'{self.directory} holds no {folder.name}; there are {", ".join(references) or "none"}'
      )
    return self._restore_tree(folder, 'policy', like)

  # ---------------------------------------------------------------- the directory

  def _step_folder(self, step):
    return self.directory / f'step_{int(step):06d}'

  def _reference_folder(self, stage, step=None):
    later = '' if step is None else f'_step_{int(step):06d}'
    return self.directory / f'reference_stage_{int(stage)}{later}'

  def _restore_tree(self, folder, name, like):
    return checkpoint_files.restore(folder, {name: like})[name]

  def _steps_to_keep(self):
    last = self.steps()[-self.config.keep_last :]
    best = self._steps_by_metric()[: self.config.keep_best]
    return set(last) | set(best)

  def _steps_by_metric(self):
    """Steps with a metric, best first."""
    metrics = {
      step: checkpoint_files.read_metadata(self._step_folder(step))['metric']
      for step in self.steps()
    }
    evaluated = [step for step in metrics if metrics[step] is not None]
    return sorted(evaluated, key=lambda step: (-metrics[step], step))

  def _unneeded_references(self, stage):
    """Later references of a stage that no continued run can need any more."""
    steps = {
      path: int(match[1])
      for path in checkpoint_files.folders(self.directory)
      if (match := re.fullmatch(rf'reference_stage_{int(stage)}_step_(\d+)', path.name))
    }
    needed = max((step for step in steps.values() if step <= self.latest()), default=0)
    return [path for path, step in steps.items() if step < needed]


def _as_json(algorithm_state):
  """Returns the state of an algorithm as JSON; its dataclass restores it with from_json."""
  is_dataclass = dataclasses.is_dataclass(algorithm_state)
  return dataclasses.asdict(algorithm_state) if is_dataclass else algorithm_state
