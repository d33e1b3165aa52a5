"""A judge in the process of the run: a Hugging Face checkpoint, asked through our own engine."""

import collections
import threading
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rft_jax import hf
from rft_jax.data import chat as chats
from rft_jax.graders.judges.judges import Answer, JudgeConfig, Request
from rft_jax.sampling import engine


class LocalJudge:
  """The Backend of graders.Judges for JudgeConfig.local.

  The weights are read when it is first asked, and lie on one device: it is asked while the policy
  samples, and programs of several devices, started from two threads, may wait for each other for
  ever. The same question gets the same answer, whatever is asked beside it.

      judges = graders.Judges(config, local_judge.LocalJudge(config))

  Of sampling_params, temperature (default 0, greedy), top_p, seed and max_completions_tokens are
  heeded; reasoning_effort has no meaning here.
  """

  varies = False

  def __init__(self, config: JudgeConfig):
    self._config = config
    self._directory = self._chat = self._model = None
    self._lock = threading.Lock()  # one batch at a time: a device is not quicker with two

  def problems(self, model: str, kinds: frozenset[str]) -> list[str]:
    """Returns why the checkpoint cannot judge, without reading its weights."""
    found = [
      f'judge.local: a local judge reads text alone, need messages without {kind}'
      for kind in sorted(kinds & {'input_image', 'input_audio'})
    ]
    try:
      self._open()
    except (ValueError, OSError) as error:
      found.append(f'judge.local={self._config.local!r}: {error}')
    return found

  def identity(self, model: str) -> dict[str, Any]:
    """Returns where the weights lie, their sizes and times, and the digest of the chat template."""
    self._open()
    weights = [
      (path.name, path.stat().st_size, path.stat().st_mtime_ns)
      for path in sorted(self._directory.glob('*.safetensors'))
    ]
    return {'local': str(self._directory), 'weights': weights, 'chat': self._chat.fingerprint()}

  def answers(self, requests: list[Request]) -> Iterator[tuple[int, Answer]]:
    """Yields (place in requests, Answer) for each; those with the same sampling go together."""
    with self._lock:
      self._open()
      if self._model is None:
        dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
        self._model, _ = hf.load(self._directory, dtype=dtype)
      alike = collections.defaultdict(dict)  # settings -> {place: prompt ids}
      for place, request in enumerate(requests):
        try:
          ids = self._prompt(request)
        except ValueError as error:
          yield place, _fault(str(error))
        else:
          alike[self._settings(request, len(ids))][place] = ids
      for settings, prompts in alike.items():
        yield from self._sampled(prompts, settings)

  def close(self) -> None:
    """Lets the weights go."""
    with self._lock:
      self._model = None

  def _open(self) -> None:
    if self._chat is None:
      directory = hf.resolve(self._config.local)
      hf.read_config(directory)
      self._chat, self._directory = chats.make(directory, chats.ChatConfig()), directory

  def _settings(self, request: Request, length: int) -> '_Settings':
    """Returns how to answer a prompt of so many tokens; few different ones for many lengths."""
    given, room = request.sampling, self._model.config.max_positions - length
    most = given.get('max_completions_tokens', self._config.max_tokens)
    return _Settings(
      most if most <= room else 1 << room.bit_length() - 1,
      given.get('temperature', 0.0),
      given.get('top_p', 1.0),
      given.get('seed', 0) % 2**31,
    )

  def _prompt(self, request: Request) -> list[int]:
    """Returns the ids of the prompt; raises ValueError if it cannot be put to this model."""
    messages = [
      {**message, 'content': unmarked(self._chat, message['content'])}
      for message in request.messages
    ]
    try:
      ids = self._chat.prompt_ids(messages)
    except chats.RenderError:  # a template without room for a system message
      ids = self._chat.prompt_ids(_folded(messages))
    if len(ids) >= self._model.config.max_positions:
      raise ValueError(
        f'the prompt has {len(ids)} tokens, and the judge {self._directory.name} '
        f'has {self._model.config.max_positions} positions'
      )
    return ids

  def _sampled(self, prompts: dict[int, list[int]], settings: '_Settings'):
    samples = engine.generate(
      self._model,
      list(prompts.values()),
      stop_ids=self._chat.stop_ids,
      # Named by what they say: the draw does not depend on the place in a batch.
      occurrences=[
        zlib.crc32(np.asarray(ids, np.int32).tobytes()) >> 1 for ids in prompts.values()
      ],
      **settings._asdict(),
    )
    for (place, ids), (sample,) in zip(prompts.items(), samples):
      drawn = len(sample.tokens)
      usage = {
        'prompt_tokens': len(ids),
        'completion_tokens': drawn,
        'total_tokens': len(ids) + drawn,
        'cached_tokens': 0,
      }
      if sample.stop_reason == 'length':
        yield place, Answer(None, usage, {'model_grader_exceeded_max_tokens_error': True})
      else:
        yield place, Answer(self._chat.decode(sample.tokens), usage, {})


class _Settings(NamedTuple):
  """As engine.generate takes them."""

  max_new_tokens: int
  temperature: float
  top_p: float
  seed: int


def _fault(details: str) -> Answer:
  return Answer(
    None, {}, {'model_grader_server_error': True, 'model_grader_server_error_details': details}
  )


def unmarked(chat, text: str) -> str:
  """Returns text in which no control token is spelt: an answer must not end the judge's turn."""
  for token in chat.control_tokens(text):
    text = text.replace(token, f'{token[0]} {token[1:]}' if len(token) > 1 else '')
  return text


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns messages with what the system says in front of the first that is not the system's."""
  said = [message['content'] for message in messages if message['role'] == 'system']
  first, *others = [message for message in messages if message['role'] != 'system'] or [
    {'role': 'user', 'content': ''}
  ]
  return [{**first, 'content': '\n\n'.join([*said, first['content']]).strip()}, *others]
