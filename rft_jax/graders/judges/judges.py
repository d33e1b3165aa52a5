"""Who answers for model judges: an endpoint or a local model, with a memory of what it said.

A grader makes Requests; Judges answers them from its cache or through a Backend, which is an
endpoint (endpoint.py) or a checkpoint in this process (rft_jax/local_models/judge.py).
"""

import collections
import dataclasses
import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from rft_jax.graders.judges.cache import JudgeCache


@dataclasses.dataclass(slots=True, kw_only=True)
class JudgeConfig:
  """Which model answers for score_model and label_model graders, and how it is asked."""

  # An endpoint that speaks OpenAI's chat completions (OpenAI, vLLM, SGLang, llama.cpp, Ollama).
  # '': the environment's OPENAI_BASE_URL, else OpenAI itself.
  base_url: str = ''
  api_key_env: str = 'OPENAI_API_KEY'  # the environment variable with the key that is sent there
  model: str = ''  # is asked in place of the model that the grader's JSON names; '': that one
  # A Hugging Face directory or hub id: this model judges in the process of the run. No endpoint.
  local: str = ''
  concurrency: int = 16  # requests under way at once; of no effect with local
  retries: int = 3  # of a request after 429, 5xx, a time-out, or an answer that cannot be read
  timeout_seconds: float = 120.0  # without a word from the endpoint
  # Of one answer, where the grader's sampling_params say nothing. Reasoning counts.
  max_tokens: int = 4096
  # A folder where verdicts are kept, for any number of runs: the same judge is asked the same
  # question once. '': in the workdir of a run, elsewhere in memory.
  cache: str = ''

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    address = urllib.parse.urlsplit(self.base_url)
    checks = (
      (
        not self.base_url or address.scheme in ('http', 'https') and address.hostname,
        f'base_url={self.base_url!r}, need an address such as http://localhost:8000/v1',
      ),
      (
        not (self.base_url and self.local),
        f'local={self.local!r} with base_url={self.base_url!r}, need one of them',
      ),
      (self.api_key_env, "api_key_env='', need the name of an environment variable"),
      (self.concurrency >= 1, f'concurrency={self.concurrency}, need >= 1'),
      (self.retries >= 0, f'retries={self.retries}, need >= 0'),
      (self.timeout_seconds > 0, f'timeout_seconds={self.timeout_seconds}, need > 0'),
      (self.max_tokens >= 1, f'max_tokens={self.max_tokens}, need >= 1'),
    )
    return [problem for good, problem in checks if not good]


class Request(NamedTuple):
  """One question to a judge."""

  model: str  # as the grader's JSON names it
  messages: list[dict[str, Any]]  # as chat completions spell them
  sampling: dict[str, Any]  # those of the API's sampling_params that are given
  schema: dict[str, Any]  # JSON Schema of the answer
  read: Callable[[str], Any]  # what an answer's text says, never None; ValueError: nothing


class Answer(NamedTuple):
  """What a backend got for a request."""

  text: str | None  # None: errors say why
  usage: dict[str, int]  # prompt_tokens, completion_tokens, total_tokens, cached_tokens
  errors: dict[str, bool | str]  # keys of graders/run


class Reply(NamedTuple):
  """What became of a request."""

  value: Any  # what Request.read made of the answer; None: errors say why
  usage: dict[str, int]  # of all tries; {} where the cache answered
  model: str  # that was asked
  errors: dict[str, bool | str]  # keys of graders/run; {} if all is well


class Backend(Protocol):
  """A model that can be asked."""

  varies: bool  # whether the same question may get another answer: otherwise it is asked once

  def problems(self, model: str, kinds: frozenset[str]) -> list[str]:
    """Returns why it could not answer, whatever it is asked; [] if it could.

    Args:
      model: the one to ask.
      kinds: of the parts of its messages: input_text, input_image, input_audio.
    """

  def identity(self, model: str) -> dict[str, Any]:
    """Returns what tells this judge from others, as JSON: verdicts are kept by it."""

  def answers(self, requests: list[Request]) -> Iterator[tuple[int, Answer]]:
    """Yields (place in requests, Answer) for each, as they come. Never raises for one of them."""

  def close(self) -> None:
    """Frees what it holds."""


class Judges:
  """Answers the requests of all model judges of a run. May be asked from several threads.

  Args:
    config: is taken as valid.
    backend: who answers; None: the endpoint of config.
    cache: the folder for verdicts where config names none; '': in memory.
  """

  def __init__(self, config: JudgeConfig, backend: Backend | None = None, cache: str = ''):
    if backend is None:
      from rft_jax.graders.judges import endpoint as judge_endpoint

      backend = judge_endpoint.JudgeEndpoint(config)
    self.config, self._backend = config, backend
    self._cache = JudgeCache(config.cache or cache)

  def problems(self, model: str, kinds: frozenset[str] = frozenset()) -> list[str]:
    """Returns why judges of this model could not be asked at all; see Backend.problems."""
    found = [f'judge.{problem}' for problem in self.config.validate()]
    found += self._backend.problems(self.config.model or model, kinds)
    return found + [f'judge.cache: {problem}' for problem in self._cache.problems()]

  def ask(self, requests: list[Request]) -> list[Reply]:
    """Returns the Reply to each request, in order. Never raises because of one of them.

    Equal requests are asked once. An answer that cannot be read is asked for again, `retries`
    times, and is then model_grader_parse_error.
    """
    places = collections.defaultdict(list)
    for place, request in enumerate(requests):
      places[self._key(request)].append(place)
    first = {key: requests[where[0]] for key, where in places.items()}
    replies = {key: self._remembered(key, request) for key, request in first.items()}
    open_keys = [key for key, reply in replies.items() if reply is None]
    for _ in range(1 + self.config.retries * self._backend.varies):
      asked, open_keys = open_keys, []
      for n, answer in self._backend.answers([first[key] for key in asked]):
        key = asked[n]
        replies[key] = self._reply(key, first[key], answer, replies[key])
        if 'model_grader_parse_error' in replies[key].errors:
          open_keys.append(key)
      if not open_keys:
        break
    return [
      reply if place == places[key][0] else reply._replace(usage={})
      for place, key, reply in sorted(
        (place, key, replies[key]) for key in places for place in places[key]
      )
    ]

  def _reply(self, key, request, answer: Answer, before: Reply | None) -> Reply:
    usage = collections.Counter(before.usage if before else {})
    usage.update(answer.usage)
    reply = Reply(None, dict(usage), self._model(request), answer.errors)
    if answer.errors:
      return reply
    try:
      value = request.read(answer.text)
    except ValueError as error:
      return reply._replace(
        errors={'model_grader_parse_error': True, 'model_grader_parse_error_details': str(error)}
      )
    self._cache.put(key, answer.text)
    return reply._replace(value=value)

  def _remembered(self, key, request) -> Reply | None:
    text = self._cache.get(key)
    try:
      return None if text is None else Reply(request.read(text), {}, self._model(request), {})
    except ValueError:  # of another version of this program
      return None

  def _model(self, request) -> str:
    return self.config.model or request.model

  def _key(self, request) -> str:
    """Returns the sha256 of everything that the answer depends on."""
    asked = {
      'judge': self._backend.identity(self._model(request)),
      'messages': request.messages,
      'sampling': request.sampling,
      'schema': request.schema,
      'max_tokens': self.config.max_tokens,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

  def close(self) -> None:
    """Closes the cache and the backend."""
    self._cache.close()
    self._backend.close()
