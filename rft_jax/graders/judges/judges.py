"""Judges: requests of model graders, answered from a cache or by a backend, with retries."""

import collections
import hashlib
import json

from rft_jax.graders.judges.cache import JudgeCache
from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.judges.endpoint import JudgeEndpoint
from rft_jax.graders.judges.protocol import (
  JudgeBackend,
  JudgeCompletion,
  JudgeRequest,
  JudgeVerdict,
)


class Judges:
  """Returns verdicts for all model graders of a run. May be called from several threads.

  Args:
    config: must be valid.
    backend: completes the requests; None: the endpoint of config.
    cache: the folder for verdicts where config names none; '': in memory.
  """

  def __init__(self, config: JudgeConfig, backend: JudgeBackend | None = None, cache: str = ''):
    self.config = config
    self._backend = JudgeEndpoint(config) if backend is None else backend
    self._cache = JudgeCache(config.cache or cache)

  def problems(self, model: str, part_types: frozenset[str] = frozenset()) -> list[str]:
    """Returns why no request to this model could be completed; see JudgeBackend.problems."""
    problems = [f'judge.{problem}' for problem in self.config.validate()]
    problems += self._backend.problems(self.config.model or model, part_types)
    return problems + [f'judge.cache: {problem}' for problem in self._cache.problems()]

  def verdicts(self, requests: list[JudgeRequest]) -> list[JudgeVerdict]:
    """Returns the verdict on each request, in order. Never raises because of a single request.

    Equal requests are sent once. A request whose answer cannot be parsed is sent again, up to
    config.retries times, and is then model_grader_parse_error.
    """
    indices_by_key = collections.defaultdict(list)
    for index, request in enumerate(requests):
      indices_by_key[self._key(request)].append(index)
    unique_requests = {key: requests[indices[0]] for key, indices in indices_by_key.items()}
    verdicts = {
      key: verdict
      for key, request in unique_requests.items()
      if (verdict := self._cached(key, request)) is not None
    }
    open_keys = [key for key in unique_requests if key not in verdicts]
    for _ in range(1 + self.config.retries * self._backend.nondeterministic):
      sent_keys, open_keys = open_keys, []
      for n, completion in self._backend.complete([unique_requests[key] for key in sent_keys]):
        key = sent_keys[n]
        verdict = self._verdict(key, unique_requests[key], completion, verdicts.get(key))
        verdicts[key] = verdict
        if 'model_grader_parse_error' in verdict.errors:
          open_keys.append(key)
      if not open_keys:
        break
    return [
      verdict if index == indices_by_key[key][0] else verdict._replace(usage={})
      for index, key, verdict in sorted(
        (index, key, verdicts[key]) for key in indices_by_key for index in indices_by_key[key]
      )
    ]

  def _verdict(
    self, key, request, completion: JudgeCompletion, previous: JudgeVerdict | None
  ) -> JudgeVerdict:
    """Returns the parsed completion, which is then cached; usage adds to the previous attempts'."""
    usage = collections.Counter(previous.usage if previous else {})
    usage.update(completion.usage)
    verdict = JudgeVerdict(None, dict(usage), self._model(request), completion.errors)
    if completion.errors:
      return verdict
    assert completion.text is not None  # it is None only with errors
    try:
      value = request.parse(completion.text)
    except ValueError as error:
      return verdict._replace(
        errors={'model_grader_parse_error': True, 'model_grader_parse_error_details': str(error)}
      )
    self._cache.put(key, completion.text)
    return verdict._replace(value=value)

  def _cached(self, key, request) -> JudgeVerdict | None:
    text = self._cache.get(key)
    try:
      if text is None:
        return None
      return JudgeVerdict(request.parse(text), {}, self._model(request), {})
    except ValueError:  # written by another version of this program
      return None

  def _model(self, request) -> str:
    return self.config.model or request.model

  def _key(self, request) -> str:
    """Returns the sha256 of everything that the answer depends on."""
    content = {
      'judge': self._backend.identity(self._model(request)),
      'messages': request.messages,
      'sampling': request.sampling_params,
      'schema': request.schema,
      'max_tokens': self.config.max_tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  def close(self) -> None:
    """Closes the cache and the backend."""
    self._cache.close()
    self._backend.close()
