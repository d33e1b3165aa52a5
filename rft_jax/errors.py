"""Errors that become one line for the user: an unfit input, or a grader that failed too often."""


class InputError(ValueError):
  """What the user gave cannot be run. The message says what, where, and the way out."""


class GraderFaults(RuntimeError):
  """Too many samples could not be graded, by no fault of the policy."""


def as_input_error(function, *args, **kwargs):
  """Returns function(*args, **kwargs); what it finds wrong with the input becomes InputError.

  Raises:
    InputError: the function raised ValueError, LookupError or OSError.
  """
  try:
    return function(*args, **kwargs)
  except (ValueError, LookupError, OSError) as error:
    raise error if isinstance(error, InputError) else InputError(str(error)) from error
