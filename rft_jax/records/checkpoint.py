"""Checkpoints: what training needs to go on, kept as {leaf name: array} by Orbax.

    checkpoints/
      step_000050/           checkpoint.json, policy/, optimizer/, critic/ where there is one
      reference_stage_1/     checkpoint.json, policy/           never pruned, never overwritten
      reference_stage_1_step_000040/                            one that took its place later

A folder has its final name only once all of it is written: an interrupted save leaves a hidden
folder, which the next save clears away, and every earlier checkpoint as it was.
"""

import dataclasses
import json
import math
import pathlib
import re
import shutil

import jax
import orbax.checkpoint as ocp

from rft_jax.records import atomic
from rft_jax.sharding import name_of
from rft_jax.types import TrainState, Tree


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
  """How often to save, and which checkpoints to keep: the best and the last ones."""

  every: int = 50  # steps between saves; 0: at the end of a stage only
  keep_best: int = 3  # with the highest held-out grade
  keep_last: int = 1  # the newest, graded or not

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = (
      (self.every >= 0, f'every={self.every}, need >= 0'),
      (self.keep_best >= 0, f'keep_best={self.keep_best}, need >= 0'),
      (self.keep_last >= 1, f'keep_last={self.keep_last}, need >= 1: a run continues from it'),
    )
    return [problem for good, problem in checks if not good]


class MissingCheckpoint(LookupError):
  """No such checkpoint. The message lists those there are."""


class MismatchedCheckpoint(ValueError):
  """A checkpoint does not fit the model or optimizer. The message names every leaf at fault."""


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Arrays are saved from the mesh they lie on and restored onto the mesh of the target, bit for
  bit. Every process of a multi-host run makes the same calls; the folder is a shared one.
  """

  def __init__(self, directory: str | pathlib.Path, config: CheckpointConfig | None = None):
    self.directory = pathlib.Path(directory).absolute()  # Orbax takes no relative paths
    self.config = CheckpointConfig() if config is None else config

  # ---------------------------------------------------------------- what there is

  def steps(self) -> list[int]:
    """Returns the steps of all whole checkpoints, ascending."""
    matches = (re.fullmatch(r'step_(\d+)', path.name) for path in self._folders())
    return sorted(int(match[1]) for match in matches if match)

  def latest(self) -> int | None:
    """Returns the newest step, None if there is none."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the highest metric, the earlier of equals; ungraded: the newest."""
    ranked = self._ranked()
    return ranked[0] if ranked else self.latest()

  def resolve(self, which: int | str) -> int:
    """Returns the step that 'last', 'best' or a number (also as text) means.

    Raises:
      MissingCheckpoint: there is no such step; lists those there are.
    """
    steps = self.steps()
    named = {'last': self.latest, 'best': self.best}
    if not steps:
      raise MissingCheckpoint(
        f'{self.directory} holds no checkpoint (asked for {which!r}); '
        'train first, or give the workdir of another run'
      )
    if which in named:
      return named[which]()
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
    return _metadata(self._folder(self.resolve(which)))

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
    """Saves a state, then removes those checkpoints that need not be kept.

    Args:
      step: names the checkpoint; one of the same step is replaced.
      state: policy, optimizer and critic, on any mesh, and the algorithm's memory.
      stage: which stage's optimizer it is.
      metric: held-out grade, higher is better; None or not finite: not graded.
      position: where the data order stands, any small JSON.
    """
    metric = float(metric) if metric is not None and math.isfinite(metric) else None
    about = {
      'step': int(step),
      'stage': int(stage),
      'metric': metric,
      'position': position,
      'algorithm_state': state.algorithm_state,
    }
    self._write(
      self._folder(step),
      about,
      {'policy': state.policy, 'optimizer': state.optimizer, 'critic': state.critic},
    )
    if jax.process_index() == 0:
      for old in set(self.steps()) - self._kept():
        _remove(self._folder(old))
      for folder in self._outlived(stage):
        _remove(folder)
    _together('pruned')

  def save_reference(self, stage: int, policy: Tree, step: int | None = None) -> None:
    """Saves the policy with which a stage starts, or the one that takes its place at a step.

    One that exists already stays as it is.
    """
    if not self.has_reference(stage, step):
      self._write(
        self._reference(stage, step), {'stage': int(stage), 'step': step}, {'policy': policy}
      )

  def clear(self) -> None:
    """Removes the references of a run that never saved a checkpoint, and unfinished saves.

    Raises:
      ValueError: there are checkpoints.
    """
    if self.steps():
      raise ValueError(f'{self.directory} holds checkpoints; they are not removed')
    if jax.process_index() == 0:
      for folder in self._folders():
        shutil.rmtree(folder)
    _together('cleared')

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
    step = self.resolve(which)
    folder = self._folder(step)
    trees = {'policy': like.policy, 'optimizer': like.optimizer, 'critic': like.critic}
    restored = _restore(folder, trees)
    about = _metadata(folder)
    return TrainState(
      about['step'], restored['policy'], restored['optimizer'], restored['critic'], about['algorithm_state']
    )

  def restore_policy(self, which: int | str, like: Tree) -> Tree:
    """Returns the policy alone: for evaluation, export, or as another run's start."""
    return _restore(self._folder(self.resolve(which)), {'policy': like})['policy']

  def restore_critic(self, which: int | str, like: Tree) -> Tree:
    """Returns the critic alone: the head of a reward model."""
    return _restore(self._folder(self.resolve(which)), {'critic': like})['critic']

  def has_reference(self, stage: int, step: int | None = None) -> bool:
    """Tells whether the reference of a stage, or its later one of a step, has been saved."""
    return self._reference(stage, step).is_dir()

  def restore_reference(self, stage: int, like: Tree, step: int | None = None) -> Tree:
    """Returns the policy with which a stage started, or the later reference of a step."""
    if not self.has_reference(stage, step):
      there = sorted(path.name for path in self._folders() if path.name.startswith('reference_'))
      raise MissingCheckpoint(
        f'{self.directory} holds no {self._reference(stage, step).name}; '
        f'there are {", ".join(there) or "none"}'
      )
    return _restore(self._reference(stage, step), {'policy': like})['policy']

  # ---------------------------------------------------------------- the folder

  def _folder(self, step):
    return self.directory / f'step_{int(step):06d}'

  def _reference(self, stage, step=None):
    later = '' if step is None else f'_step_{int(step):06d}'
    return self.directory / f'reference_stage_{int(stage)}{later}'

  def _outlived(self, stage):
    """Later references of a stage that no continued run can ask for any more."""
    found = {
      path: int(match[1])
      for path in self._folders()
      if (match := re.fullmatch(rf'reference_stage_{int(stage)}_step_(\d+)', path.name))
    }
    needed = max((step for step in found.values() if step <= self.latest()), default=0)
    return [path for path, step in found.items() if step < needed]

  def _folders(self):
    return list(self.directory.iterdir()) if self.directory.is_dir() else []

  def _ranked(self):
    """Graded steps, best first."""
    metrics = {step: _metadata(self._folder(step))['metric'] for step in self.steps()}
    graded = [step for step in metrics if metrics[step] is not None]
    return sorted(graded, key=lambda step: (-metrics[step], step))

  def _kept(self):
    last, best = self.steps()[-self.config.keep_last :], self._ranked()[: self.config.keep_best]
    return set(last) | set(best)

  def _write(self, folder, about, trees):
    """Writes a checkpoint under a hidden name and gives it its own by rename."""
    partial = folder.with_name(f'.{folder.name}.partial')
    if jax.process_index() == 0:
      self._clear_interrupted()
      partial.mkdir(parents=True)
    _together(f'save {folder.name}')
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      for name, tree in trees.items():
        leaves = _named(tree)
        if leaves:  # Orbax refuses an empty tree, such as the state of plain SGD
          checkpointer.save(partial / name, args=ocp.args.PyTreeSave(leaves))
    if jax.process_index() == 0:
      atomic.write_json(partial / 'checkpoint.json', about)
      replaced = folder.with_name(f'.{folder.name}.replaced')
      if folder.exists():
        folder.rename(replaced)
      partial.rename(folder)
      shutil.rmtree(replaced, ignore_errors=True)
    _together(f'saved {folder.name}')

  def _clear_interrupted(self):
    """Removes what a killed save left; puts back a checkpoint it was about to replace."""
    for path in self._folders():
      name = path.name.removeprefix('.').removesuffix('.replaced')
      if path.name == f'.{name}.replaced' and not (self.directory / name).exists():
        path.rename(self.directory / name)
      elif path.name.startswith('.'):
        shutil.rmtree(path)


def _metadata(folder):
  return json.loads((folder / 'checkpoint.json').read_text(encoding='utf-8'))


def _remove(folder):
  """Removes a checkpoint; interrupted, it leaves a hidden folder, never half a checkpoint."""
  hidden = folder.rename(folder.with_name(f'.{folder.name}.removed'))
  shutil.rmtree(hidden)


def _together(what):
  """Waits until all processes of a multi-host run are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f'checkpoint: {what}')


def _named(tree):
  """Returns {name: leaf}; raises where two leaves share a name, as one would be lost."""
  leaves = [(name_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
  named = dict(leaves)
  if len(named) != len(leaves):
    names = [name for name, _ in leaves]
    raise ValueError(f'leaves share a name: {sorted({n for n in names if names.count(n) > 1})}')
  return named


def _restore(folder, trees):
  """Returns the trees saved in a folder, after comparing all of them with their targets."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    targets = {
      name: {leaf: _target(value) for leaf, value in _named(tree).items()}
      for name, tree in trees.items()
    }
    problems = []
    for name, target in targets.items():
      saved = {}
      if (folder / name).is_dir():
        saved = checkpointer.metadata(folder / name).item_metadata.tree
      problems += [f'{name}/{problem}' for problem in _differences(saved, target)]
    if problems:
      raise MismatchedCheckpoint(
        '\n'.join(
          [
            f'{folder} does not fit this model and optimizer (give the config it was trained with):',
            *problems,
          ]
        )
      )
    restored = {}
    for name, tree in trees.items():
      values = {}
      if targets[name]:
        values = checkpointer.restore(
          folder / name,
          args=ocp.args.PyTreeRestore(
            item=targets[name],
            restore_args=ocp.checkpoint_utils.construct_restore_args(targets[name]),
          ),
        )
      restored[name] = jax.tree_util.tree_map_with_path(
        lambda path, _, values=values: values[name_of(path)], tree
      )
  return restored


def _target(leaf):
  """Returns the shape, dtype and place of a leaf to restore."""
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved, target):
  """Lists leaves that are missing, unknown, or of another shape or dtype than asked for.

  Orbax itself would cast a leaf of another dtype in silence.
  """
  unknown = sorted(saved.keys() - target.keys())
  problems = [f'{name}: in the checkpoint, not asked for' for name in unknown]
  for name, wanted in target.items():
    if name not in saved:
      problems.append(f'{name}: not in the checkpoint')
      continue
    if jax.dtypes.issubdtype(wanted.dtype, jax.dtypes.prng_key):  # saved as its raw words
      wanted = jax.eval_shape(jax.random.key_data, wanted)
    found, wanted = [f'{leaf.dtype}{list(leaf.shape)}' for leaf in (saved[name], wanted)]
    if found != wanted:
      problems.append(f'{name}: found {found}, expected {wanted}')
  return problems
