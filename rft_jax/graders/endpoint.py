"""The `endpoint` grader: posts the answer to a URL of the user, which replies with its score."""

import concurrent.futures
import dataclasses
import math
import os
import random
import re
import threading
import time
import urllib.parse
from typing import Any

from rft_jax.graders import base, score_request, template
from rft_jax.types import Grade

BACKOFF_SECONDS = 0.5  # before the first retry; doubled before each further one

_VARIABLE = re.compile(r'\$\{(\w*)\}')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint:
  """Scores by a POST of {"sample", "item", "trace_id"} to url; the response is {"score": number}.

  The `endpoint` grader of the OpenAI API. A header may name environment variables, so that no key
  is written into a run: {"Authorization": "Bearer ${MY_KEY}"}. A 5xx, 408 or 429, a time-out and
  a broken connection are retried with exponential backoff; another 4xx, a redirect (never
  followed) and a response without a finite score are not. A request that finally fails is the
  grader fault endpoint_grader_server_error; a row that cannot be sent (over 1 MiB, or not JSON) is
  endpoint_grader_internal_error. trace_id is new for each answer and the same in its retries.

      Endpoint(name='remote', url='https://grader.example/score', rate_limit=50)

  Raises:
    ValueError: at construction, listing every problem: an unset variable, an invalid URL.
  """

  name: str
  url: str
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  rate_limit: float | None = None  # requests a second, retries included; None: no limit
  timeout_seconds: float = 600.0  # of one request with its response
  retries: int = 3
  concurrency: int = 16  # requests in flight at once
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  _sent_headers: dict[str, str] = dataclasses.field(init=False, repr=False)
  _secrets: frozenset[str] = dataclasses.field(init=False, repr=False)
  _rate_limiter: '_RateLimiter' = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(
      self,
      '_sent_headers',
      {
        'Content-Type': 'application/json',
        'Accept': 'application/json',
        'User-Agent': 'rft_jax',
        **{name: _resolve(value) for name, value in self.headers.items()},
      },
    )
    object.__setattr__(
      self,
      '_secrets',
      frozenset(
        os.environ[name]
        for value in self.headers.values()
        for name in _VARIABLE.findall(value)
        if os.environ[name]
      ),
    )
    object.__setattr__(self, '_rate_limiter', _RateLimiter(self.rate_limit))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = _url_problems(fields['url']) if 'url' in fields else []
    problems.extend(_header_problems(fields.get('headers', {})))
    for name, bound, is_integer, need in (
      ('rate_limit', 0, False, 'a number > 0'),
      ('timeout_seconds', 0, False, 'a number > 0'),
      ('retries', -1, True, 'a whole number >= 0'),
      ('concurrency', 0, True, 'a whole number >= 1'),
    ):
      value = fields.get(name)
      types = (int,) if is_integer else (int, float)
      if value is not None and (
        isinstance(value, bool) or not isinstance(value, types) or not bound < value < math.inf
      ):
        problems.append(f'{name}={value!r}, need {need}')
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      body = score_request.make_body(item, sample)
    except ValueError as error:
      return base.grader_fault(
        self,
        {
          'endpoint_grader_internal_error': True,
          'endpoint_grader_internal_error_details': str(error),
        },
      )
    for attempt in range(self.retries + 1):
      self._rate_limiter.wait()
      try:
        score = score_request.post(self.url, body, self._sent_headers, self.timeout_seconds)
        return Grade(score, {self.name: score}, {})
      except score_request.RequestError as failure:
        details = f'{self.url}: {failure}'
        if not failure.retryable:
          break
      if attempt < self.retries:
        time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.75, 1.25))
    details += f' ({attempt + 1} attempts)' if attempt else ''
    for secret in self._secrets:  # a response may repeat the headers of its request
      details = details.replace(secret, '***')
    return base.grader_fault(
      self, {'endpoint_grader_server_error': True, 'endpoint_grader_server_error_details': details}
    )

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, with `concurrency` requests in flight."""
    if not pairs:
      return []
    with concurrent.futures.ThreadPoolExecutor(
      min(self.concurrency, len(pairs)), 'endpoint'
    ) as threads:
      return list(threads.map(lambda pair: self(*pair), pairs))

  def item_fields(self) -> None:
    """Returns None: the fields that a server reads are unknown here."""
    return None

  def close(self) -> None:
    """Does nothing: connections are closed after each response."""


class _RateLimiter:
  """Spaces calls of wait() evenly, `rate` per second over all threads."""

  def __init__(self, rate: float | None):
    self._interval = 1 / rate if rate else 0.0
    self._next_start, self._lock = 0.0, threading.Lock()

  def wait(self) -> None:
    with self._lock:
      now = time.monotonic()
      start = max(now, self._next_start)
      self._next_start = start + self._interval
    time.sleep(start - now)


def _resolve(value: str) -> str:
  return _VARIABLE.sub(lambda match: os.environ[match[1]], value)


def _url_problems(url: Any) -> list[str]:
  parts = _split_address(url)
  if parts is None:
    return [f'url={url!r}, need an address such as https://host/path']
  if parts.username or parts.password:
    return [
      'url holds a password, which would be written into the run; put it into headers as '
      '{"Authorization": "Bearer ${MY_KEY}"}, with MY_KEY in the environment'
    ]
  return []


def _split_address(url: Any) -> urllib.parse.SplitResult | None:
  """Returns the parts of an http or https address; None if url is not one."""
  if not isinstance(url, str) or not url.isascii() or re.search(r'\s', url):
    return None
  try:
    parts = urllib.parse.urlsplit(url)
    is_valid = parts.scheme in ('http', 'https') and parts.hostname and (parts.port or True)
  except ValueError:  # of the host or the port
    return None
  return parts if is_valid else None


def _header_problems(headers: Any) -> list[str]:
  """Returns what is wrong with headers; the texts hold no values of environment variables."""
  if not isinstance(headers, dict):
    return [f'headers is {template.json_type(headers)}, need an object of strings']
  problems = []
  for name, value in headers.items():
    if not isinstance(name, str) or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
      problems.append(f'headers: {name!r} is not a valid header name')
    elif not isinstance(value, str):
      problems.append(f'headers.{name} is {template.json_type(value)}, need a string')
    elif unset := [word for word in _VARIABLE.findall(value) if word not in os.environ]:
      problems.append(
        f'headers.{name}: no environment variable {", ".join(unset)}; set it before the start '
        '(export NAME=...); its value is not recorded'
      )
    elif not re.fullmatch(r'[\t\x20-\x7e\xa0-\xff]*', _resolve(value)):
      problems.append(
        f'headers.{name}: the value has a line break or another character not allowed in a header'
      )
  return problems
