"""The interface between model graders and judges: request, completion, verdict, backend."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol


class JudgeRequest(NamedTuple):
  """One request to a judge."""

  model: str  # as the grader's JSON names it
  messages: list[dict[str, Any]]  # in the form of chat completions
  sampling_params: dict[str, Any]  # those of the API's sampling_params that the grader sets
  schema: dict[str, Any]  # JSON Schema of the answer
  parse: Callable[[str], Any]  # text of an answer -> value, never None; ValueError: no verdict


class JudgeCompletion(NamedTuple):
  """The response of a backend to one request."""

  text: str | None  # None: see errors
  usage: dict[str, int]  # prompt_tokens, completion_tokens, total_tokens, cached_tokens
  errors: dict[str, bool | str]  # keys of graders/run


class JudgeVerdict(NamedTuple):
  """The parsed result of one request."""

  value: Any  # what JudgeRequest.parse returned; None: see errors
  usage: dict[str, int]  # of all attempts; {} for a verdict from the cache
  model: str  # that the request was sent to
  errors: dict[str, bool | str]  # keys of graders/run; {} if there is a verdict


class JudgeBackend(Protocol):
  """A model that completes requests: JudgeEndpoint, or LocalJudge in rft_jax/local_models."""

  # Whether the same request may get another completion; if not, an answer that cannot be parsed
  # is not requested again.
  nondeterministic: bool

  def problems(self, model: str, part_types: frozenset[str]) -> list[str]:
    """Returns why no request at all could be completed; [] if nothing stands against it.

    Args:
      model: the model that requests would go to.
      part_types: of the parts of its messages: input_text, input_image, input_audio.
    """

  def identity(self, model: str) -> dict[str, Any]:
    """Returns, as JSON, what distinguishes this judge from others; part of the cache key."""

  def complete(self, requests: list[JudgeRequest]) -> Iterator[tuple[int, JudgeCompletion]]:
    """Yields (index into requests, completion) for each, in order of completion.

    Never raises because of a single request: that is a completion with errors.
    """

  def close(self) -> None:
    """Frees connections or weights."""
