"""LocalJudge: judge backend that samples a Hugging Face checkpoint with our own engine."""

import collections
import threading
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rft_jax import hf, platform
from rft_jax.data import chat as chats
from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.judges.protocol import JudgeCompletion, JudgeRequest
from rft_jax.sampling import engine
from rft_jax.sampling.samplers import SamplingConfig


class LocalJudge:
  """The JudgeBackend for JudgeConfig.local.

  The weights are loaded at the first request, onto one device: requests come while the policy
  samples, and programs on several devices, started from two threads, can deadlock. The same
  request gets the same completion, whatever other requests are in the batch.

      judges = graders.Judges(config, local_judge.LocalJudge(config))

  Of sampling_params it uses temperature (default 0, greedy), top_p, seed and
  max_completions_tokens; reasoning_effort has no effect.
  """

  nondeterministic = False

  def __init__(self, config: JudgeConfig):
    self._config = config
    self._directory = self._chat = self._model = None
    self._lock = threading.Lock()  # one batch at a time: two on one device are not faster

  def problems(self, model: str, part_types: frozenset[str]) -> list[str]:
    """Returns why the checkpoint cannot be a judge, without loading its weights."""
    problems = [
      f'judge.local: a local judge reads text only, need messages without {part_type}'
      for part_type in sorted(part_types & {'input_image', 'input_audio'})
    ]
    try:
      self._open()
    except (ValueError, OSError) as error:
      problems.append(f'judge.local={self._config.local!r}: {error}')
    return problems

  def identity(self, model: str) -> dict[str, Any]:
    """Returns path, names, sizes and times of the weights, and the digest of the chat template."""
    self._open()
    weights = [
      (path.name, path.stat().st_size, path.stat().st_mtime_ns)
      for path in sorted(self._directory.glob('*.safetensors'))
    ]
    return {'local': str(self._directory), 'weights': weights, 'chat': self._chat.fingerprint()}

  def complete(self, requests: list[JudgeRequest]) -> Iterator[tuple[int, JudgeCompletion]]:
    """Yields (index into requests, completion) for each; one batch per sampling settings."""
    with self._lock:
      self._open()
      if self._model is None:
        dtype = 'float32' if platform.is_cpu() else 'bfloat16'
        self._model, _ = hf.load(self._directory, dtype=dtype)
      batches = collections.defaultdict(dict)  # settings -> {index: prompt ids}
      for index, request in enumerate(requests):
        try:
          prompt_ids = self._prompt_ids(request)
        except ValueError as error:
          yield index, _server_error(str(error))
        else:
          batches[self._sampling_settings(request, len(prompt_ids))][index] = prompt_ids
      for settings, prompts in batches.items():
        yield from self._sample(prompts, settings)

  def close(self) -> None:
    """Frees the weights."""
    with self._lock:
      self._model = None

  def _open(self) -> None:
    """Loads config, tokenizer and chat template at the first call."""
    if self._chat is None:
      directory = hf.resolve(self._config.local)
      hf.read_config(directory)
      self._chat, self._directory = chats.make(directory, chats.ChatConfig()), directory

  def _sampling_settings(self, request: JudgeRequest, prompt_length: int) -> '_SamplingSettings':
    """Returns the settings for a prompt of this length.

    max_new_tokens is rounded down to a power of two where the context window limits it, so that
    many prompt lengths share few settings.
    """
    params = request.sampling_params
    free_positions = self._model.config.max_positions - prompt_length
    max_tokens = params.get('max_completions_tokens', self._config.max_tokens)
    return _SamplingSettings(
      max_tokens if max_tokens <= free_positions else 1 << free_positions.bit_length() - 1,
      params.get('temperature', 0.0),
      params.get('top_p', 1.0),
      params.get('seed', 0) % 2**31,
    )

  def _prompt_ids(self, request: JudgeRequest) -> list[int]:
    """Returns the ids of the prompt; raises ValueError if the model cannot take it."""
    messages = [
      {**message, 'content': without_control_tokens(self._chat, message['content'])}
      for message in request.messages
    ]
    try:
      ids = self._chat.prompt_ids(messages)
    except chats.RenderError:  # a template without a system role
      ids = self._chat.prompt_ids(_system_in_first_message(messages))
    if len(ids) >= self._model.config.max_positions:
      raise ValueError(
        f'the prompt has {len(ids)} tokens, and the judge {self._directory.name} '
        f'has {self._model.config.max_positions} positions'
      )
    return ids

  def _sample(self, prompts: dict[int, list[int]], settings: '_SamplingSettings'):
    """Yields (index, completion) of each prompt, {index: prompt ids}."""
    samples = engine.sample(
      self._model,
      list(prompts.values()),
      settings.config(),
      seed=settings.seed,
      stop_ids=self._chat.stop_ids,
      # A hash of the prompt, so that the samples do not depend on the position in the batch.
      occurrences=[
        zlib.crc32(np.asarray(ids, np.int32).tobytes()) >> 1 for ids in prompts.values()
      ],
    )
    for (index, prompt_ids), (sample,) in zip(prompts.items(), samples):
      completion_tokens = len(sample.tokens)
      usage = {
        'prompt_tokens': len(prompt_ids),
        'completion_tokens': completion_tokens,
        'total_tokens': len(prompt_ids) + completion_tokens,
        'cached_tokens': 0,
      }
      if sample.stop_reason == 'length':
        yield index, JudgeCompletion(None, usage, {'model_grader_exceeded_max_tokens_error': True})
      else:
        yield index, JudgeCompletion(self._chat.decode(sample.tokens), usage, {})


class _SamplingSettings(NamedTuple):
  """How completions are sampled, hashable: requests with the same settings are one batch."""

  max_new_tokens: int
  temperature: float
  top_p: float
  seed: int

  def config(self) -> SamplingConfig:
    return SamplingConfig(
      max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p
    )


def _server_error(details: str) -> JudgeCompletion:
  return JudgeCompletion(
    None, {}, {'model_grader_server_error': True, 'model_grader_server_error_details': details}
  )


def without_control_tokens(chat, text: str) -> str:
  """Returns text with its control tokens broken up: an answer must not end the judge's turn."""
  for token in chat.control_tokens(text):
    text = text.replace(token, f'{token[0]} {token[1:]}' if len(token) > 1 else '')
  return text


def _system_in_first_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns messages without system messages: their texts come first in the first other message."""
  system_texts = [message['content'] for message in messages if message['role'] == 'system']
  first, *others = [message for message in messages if message['role'] != 'system'] or [
    {'role': 'user', 'content': ''}
  ]
  return [{**first, 'content': '\n\n'.join([*system_texts, first['content']]).strip()}, *others]
