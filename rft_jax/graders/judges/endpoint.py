"""A judge behind an endpoint that speaks OpenAI's chat completions."""

import concurrent.futures
import importlib.util
import os
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from rft_jax.graders.judges.judges import Answer, JudgeConfig, Request

OPENAI = 'https://api.openai.com/v1'


class JudgeEndpoint:
  """Asks through the `openai` client, config.concurrency requests at a time.

  429, 5xx, time-outs and broken connections are retried by the client, with growing pauses.
  Answers are asked for by their JSON Schema; an endpoint that refuses that is asked for plain
  text from then on: the prompt says the form too.
  """

  varies = True

  def __init__(self, config: JudgeConfig):
    self._config = config
    self._base_url = config.base_url or os.environ.get('OPENAI_BASE_URL') or OPENAI
    self._key = os.environ.get(config.api_key_env, '')
    self._without_schema: set[str] = set()  # models that were found to refuse one
    self._client = self._threads = None
    self._lock = threading.Lock()

  def problems(self, model: str, kinds: frozenset[str]) -> list[str]:
    """Returns why the endpoint cannot be asked, as far as that shows without asking."""
    found = []
    if self._config.local:
      found.append(
        f'judge.local={self._config.local!r}, but no model was loaded: pass judges='
        'Judges(config, LocalJudge(config)), see rft_jax/local_models/judge.py'
      )
    if importlib.util.find_spec('openai') is None:
      found.append("the package openai is not installed; pip install 'rft_jax[judges]'")
    if self._official and not self._key:
      found.append(
        f'no API key for {self._base_url}: set the environment variable '
        f'{self._config.api_key_env} (judge.api_key_env), or judge.base_url for an '
        'endpoint of your own, or judge.local for a model in this process'
      )
    return found

  def identity(self, model: str) -> dict[str, Any]:
    """Returns address and model."""
    return {'base_url': self._base_url.rstrip('/'), 'model': model}

  def answers(self, requests: list[Request]) -> Iterator[tuple[int, Answer]]:
    """Yields (place in requests, Answer) for each, as they come."""
    with self._lock:
      if self._client is None:
        import openai

        self._client = openai.OpenAI(
          base_url=self._base_url,
          api_key=self._key or 'none',
          max_retries=self._config.retries,
          timeout=self._config.timeout_seconds,
        )
        self._threads = concurrent.futures.ThreadPoolExecutor(self._config.concurrency, 'judge')
    work = {self._threads.submit(self._ask, request): n for n, request in enumerate(requests)}
    for done in concurrent.futures.as_completed(work):
      yield work[done], done.result()

  def close(self) -> None:
    """Closes the connections."""
    with self._lock:
      if self._client is not None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()
        self._client = None

  @property
  def _official(self) -> bool:
    host = urllib.parse.urlsplit(self._base_url).hostname or ''
    return host.endswith(('.openai.com', '.openai.azure.com'))

  def _ask(self, request: Request) -> Answer:
    try:
      return _answer(self._completion(request))
    except Exception as error:  # the client's, and those of answers that are no completions
      details = f'{type(error).__name__}: {str(error):.500}'
      if self._key:  # an endpoint may well tell what it was sent
        details = details.replace(self._key, '***')
      return Answer(
        None, {}, {'model_grader_server_error': True, 'model_grader_server_error_details': details}
      )

  def _completion(self, request: Request):
    """Returns the endpoint's completion; raises what the client raises."""
    import openai

    arguments = self._arguments(request)
    model = arguments['model']
    if model in self._without_schema:
      return self._client.chat.completions.create(**arguments)
    form = {
      'type': 'json_schema',
      'json_schema': {'name': 'verdict', 'strict': True, 'schema': request.schema},
    }
    try:
      return self._client.chat.completions.create(**arguments, response_format=form)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as refused:
      try:  # it may not be the schema that it refuses: then it refuses this too
        completion = self._client.chat.completions.create(**arguments)
      except openai.APIStatusError:
        raise refused from None
      self._without_schema.add(model)
      return completion

  def _arguments(self, request: Request) -> dict[str, Any]:
    sampling = dict(request.sampling)
    tokens = sampling.pop('max_completions_tokens', self._config.max_tokens)
    # Reasoning models of OpenAI refuse max_tokens; many other servers know nothing else.
    name = 'max_completion_tokens' if self._official else 'max_tokens'
    return {
      'model': self._config.model or request.model,
      'messages': request.messages,
      name: tokens,
      **sampling,
    }


def _answer(completion) -> Answer:
  usage = _usage(completion.usage)
  choice = completion.choices[0]
  message = choice.message
  if message.refusal or choice.finish_reason == 'content_filter':
    return Answer(
      None,
      usage,
      {
        'model_grader_refusal_error': True,
        'model_grader_refusal_error_details': message.refusal or 'stopped by a content filter',
      },
    )
  if choice.finish_reason == 'length':
    return Answer(None, usage, {'model_grader_exceeded_max_tokens_error': True})
  return Answer(message.content or '', usage, {})


def _usage(usage) -> dict[str, int]:
  """Returns the token counts under the names of graders/run; {} if the endpoint tells none."""
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
