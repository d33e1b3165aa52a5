"""The reference policy of a stage: the policy at its start, or a later one if it is renewed."""


def make(checkpoints, stage: int, first_step: int, like, *, every: int = 0):
  """Returns reference(state=None) -> the reference policy at that state, read from checkpoints.

  Args:
    checkpoints: where the policy at the stage's start has been saved, see save_reference.
    stage: its number.
    first_step: the step at which it starts.
    like: shapes and shardings of the policy.
    every: steps after which the current policy becomes the reference (objective.reference_every);
      0: never. Without a state the reference is that of the start.
  """
  loaded: dict = {}  # {the step it is of: the policy}, one at a time

  def reference(state=None):
    renewed = first_step
    if every and state:
      renewed = state.step - (state.step - first_step) % every
    later = renewed if renewed > first_step else None
    if later is not None and state.step == later:
      checkpoints.save_reference(stage, state.policy, later)
    if renewed not in loaded:
      loaded.clear()
      loaded[renewed] = checkpoints.restore_reference(stage, like, later)
    return loaded[renewed]

  return reference
