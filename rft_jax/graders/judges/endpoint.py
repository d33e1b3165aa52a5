"""Judge backend for an endpoint with OpenAI's chat completions API."""

import concurrent.futures
import importlib.util
import os
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.judges.protocol import JudgeCompletion, JudgeRequest

OPENAI_BASE_URL = 'https://api.openai.com/v1'


class JudgeEndpoint:
  """A JudgeBackend that sends requests with the `openai` client, config.concurrency at a time.

  The client retries 429, 5xx, time-outs and broken connections with growing delays. Answers are
  requested in structured form, by JSON Schema; after an endpoint has refused that, its model gets
  requests for plain text: the prompt states the form too.
  """

  nondeterministic = True

  def __init__(self, config: JudgeConfig):
    self._config = config
    self._base_url = config.base_url or os.environ.get('OPENAI_BASE_URL') or OPENAI_BASE_URL
    self._api_key = os.environ.get(config.api_key_env, '')
    self._models_without_schema: set[str] = set()  # that have refused response_format
    # Both are created at the first request.
    self._client: Any = None  # openai.OpenAI
    self._threads: concurrent.futures.ThreadPoolExecutor | None = None
    self._lock = threading.Lock()

  def problems(self, model: str, part_types: frozenset[str]) -> list[str]:
    """Returns why the endpoint cannot be used, as far as that is known without a request."""
    problems = []
    if self._config.local:
      problems.append(
        f'judge.local={self._config.local!r}, but no model was loaded: pass judges='
        'Judges(config, LocalJudge(config)), see rft_jax/local_models/judge.py'
      )
    if importlib.util.find_spec('openai') is None:
      problems.append("the package openai is not installed; pip install 'rft_jax[judges]'")
    if self._is_openai and not self._api_key:
      problems.append(
        f'no API key for {self._base_url}: set the environment variable '
        f'{self._config.api_key_env} (judge.api_key_env), or judge.base_url for an '
        'endpoint of your own, or judge.local for a model in this process'
      )
    return problems

  def identity(self, model: str) -> dict[str, Any]:
    """Returns base URL and model."""
    return {'base_url': self._base_url.rstrip('/'), 'model': model}

  def complete(self, requests: list[JudgeRequest]) -> Iterator[tuple[int, JudgeCompletion]]:
    """Yields (index into requests, completion) for each, in order of completion."""
    threads = self._start()
    futures = {threads.submit(self._complete_one, request): n for n, request in enumerate(requests)}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()

  def _start(self) -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads that send requests; creates them and the client at the first call."""
    with self._lock:
      if self._threads is None:
        import openai

        self._client = openai.OpenAI(
          base_url=self._base_url,
          api_key=self._api_key or 'none',
          max_retries=self._config.retries,
          timeout=self._config.timeout_seconds,
        )
        self._threads = concurrent.futures.ThreadPoolExecutor(self._config.concurrency, 'judge')
      return self._threads

  def close(self) -> None:
    """Closes the connections."""
    with self._lock:
      if self._threads is not None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()
        self._client = self._threads = None

  @property
  def _is_openai(self) -> bool:
    host = urllib.parse.urlsplit(self._base_url).hostname or ''
    return host.endswith(('.openai.com', '.openai.azure.com'))

  def _complete_one(self, request: JudgeRequest) -> JudgeCompletion:
    try:
      return _judge_completion(self._create_completion(request))
    except Exception as error:  # the client's, and of responses that are no completions
      details = f'{type(error).__name__}: {str(error):.500}'
      if self._api_key:  # an error message of the endpoint may quote the key
        details = details.replace(self._api_key, '***')
      return JudgeCompletion(
        None, {}, {'model_grader_server_error': True, 'model_grader_server_error_details': details}
      )

  def _create_completion(self, request: JudgeRequest):
    """Returns the completion as the client gives it; raises what the client raises."""
    import openai

    arguments = self._arguments(request)
    model = arguments['model']
    if model in self._models_without_schema:
      return self._client.chat.completions.create(**arguments)
    response_format = {
      'type': 'json_schema',
      'json_schema': {'name': 'verdict', 'strict': True, 'schema': request.schema},
    }
    try:
      return self._client.chat.completions.create(**arguments, response_format=response_format)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
      try:  # if the schema was not the reason, this request is refused too
        completion = self._client.chat.completions.create(**arguments)
      except openai.APIStatusError:
        raise refusal from None
      self._models_without_schema.add(model)
      return completion

  def _arguments(self, request: JudgeRequest) -> dict[str, Any]:
    sampling_params = dict(request.sampling_params)
    max_tokens = sampling_params.pop('max_completions_tokens', self._config.max_tokens)
    # Reasoning models of OpenAI refuse max_tokens; many other servers accept nothing else.
    max_tokens_name = 'max_completion_tokens' if self._is_openai else 'max_tokens'
    return {
      'model': self._config.model or request.model,
      'messages': request.messages,
      max_tokens_name: max_tokens,
      **sampling_params,
    }


def _judge_completion(completion) -> JudgeCompletion:
  """Returns the client's completion in our form; refusals and cut-off answers become errors."""
  usage = _usage(completion.usage)
  choice = completion.choices[0]
  message = choice.message
  if message.refusal or choice.finish_reason == 'content_filter':
    return JudgeCompletion(
      None,
      usage,
      {
        'model_grader_refusal_error': True,
        'model_grader_refusal_error_details': message.refusal or 'stopped by a content filter',
      },
    )
  if choice.finish_reason == 'length':
    return JudgeCompletion(None, usage, {'model_grader_exceeded_max_tokens_error': True})
  return JudgeCompletion(message.content or '', usage, {})


def _usage(usage) -> dict[str, int]:
  """Returns the token counts under the names of graders/run; {} if the endpoint reports none."""
  if usage is None:
    return {}
  details = usage.prompt_tokens_details
  counts = {
    'prompt_tokens': usage.prompt_tokens,
    'completion_tokens': usage.completion_tokens,
    'total_tokens': usage.total_tokens,
    'cached_tokens': details.cached_tokens if details else 0,
  }
  return {name: count or 0 for name, count in counts.items()}
