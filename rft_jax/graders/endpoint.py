"""The `endpoint` grader: an answer is sent to a URL of the user's, which answers with its score."""

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import random
import re
import threading
import time
import urllib.parse
import uuid
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

LIMIT = 2**20  # bytes, of what is sent and of what comes back
BACK_OFF = 0.5  # seconds before the first retry; twice as long before each further one
RETRIED = (408, 429)  # beside all from 500 on: another 4xx will be the same again

_VARIABLE = re.compile(r'\$\{(\w*)\}')


class _Failure(Exception):
  """A call without a score. again: whether another try may help."""

  def __init__(self, details: str, *, again: bool):
    super().__init__(details)
    self.again = again


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint:
  """Scores by a POST of {"sample", "item", "trace_id"} to url, answered by {"score": number}.

  The `endpoint` grader of the OpenAI API. A header may name environment variables, so that no key
  is written into a run: {"Authorization": "Bearer ${MY_KEY}"}. A 5xx, 408 or 429, a time-out and
  a broken connection are tried again with growing pauses; another 4xx, a redirect (never
  followed) and an answer without a finite score are not. What fails for good is the grader fault
  endpoint_grader_server_error; a row that cannot be sent (over 1 MB, or not JSON) is
  endpoint_grader_internal_error. trace_id is new for each answer and the same in its retries.

      Endpoint(name='remote', url='https://grader.example/score', rate_limit=50)

  Raises:
    ValueError: at construction, listing every problem: no such variable, a URL that is none.
  """

  name: str
  url: str
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  rate_limit: float | None = None  # requests a second, retries included; None: no limit
  timeout_seconds: float = 600.0  # of one request, with its answer
  retries: int = 3
  concurrency: int = 16  # requests under way at once
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  _sent_headers: dict[str, str] = dataclasses.field(init=False, repr=False)
  _secrets: frozenset[str] = dataclasses.field(init=False, repr=False)
  _pace: '_Pace' = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(
      self,
      '_sent_headers',
      {
        'Content-Type': 'application/json',
        'Accept': 'application/json',
        'User-Agent': 'rft_jax',
        **{name: _resolved(value) for name, value in self.headers.items()},
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
    object.__setattr__(self, '_pace', _Pace(self.rate_limit))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = _url_problems(given['url']) if 'url' in given else []
    found.extend(_header_problems(given.get('headers', {})))
    for field, least, whole, need in (
      ('rate_limit', 0, False, 'a number > 0'),
      ('timeout_seconds', 0, False, 'a number > 0'),
      ('retries', -1, True, 'a whole number >= 0'),
      ('concurrency', 0, True, 'a whole number >= 1'),
    ):
      value = given.get(field)
      kinds = (int,) if whole else (int, float)
      if value is not None and (
        isinstance(value, bool) or not isinstance(value, kinds) or not least < value < math.inf
      ):
        found.append(f'{field}={value!r}, need {need}')
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      body = _body(item, sample)
    except ValueError as error:
      return base.grader_fault(
        self,
        {
          'endpoint_grader_internal_error': True,
          'endpoint_grader_internal_error_details': str(error),
        },
      )
    for tried in range(self.retries + 1):
      self._pace.wait()
      try:
        score = self._ask(body)
        return Grade(score, {self.name: score}, {})
      except _Failure as failure:
        details = f'{self.url}: {failure}'
        if not failure.again:
          break
      if tried < self.retries:
        time.sleep(BACK_OFF * 2**tried * random.uniform(0.75, 1.25))
    details += f' (tried {tried + 1} times)' if tried else ''
    for secret in self._secrets:  # a server may well tell what it was sent
      details = details.replace(secret, '***')
    return base.grader_fault(
      self, {'endpoint_grader_server_error': True, 'endpoint_grader_server_error_details': details}
    )

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, `concurrency` calls under way at once."""
    if not pairs:
      return []
    with concurrent.futures.ThreadPoolExecutor(
      min(self.concurrency, len(pairs)), 'endpoint'
    ) as threads:
      return list(threads.map(lambda pair: self(*pair), pairs))

  def _ask(self, body: bytes) -> float:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(self.url, body, self._sent_headers, method='POST')
    deadline = time.monotonic() + self.timeout_seconds
    try:
      with _opener().open(request, timeout=self.timeout_seconds) as response:
        return _score(_read(response, deadline))
    except urllib.error.HTTPError as error:
      with error:
        raise _status_failure(error) from None
    except TimeoutError:
      raise _Failure(
        f'no answer in {self.timeout_seconds:g} s (timeout_seconds)', again=True
      ) from None
    except (OSError, http.client.HTTPException) as error:
      reason = getattr(error, 'reason', error)
      if isinstance(reason, TimeoutError):
        reason = f'no connection in {self.timeout_seconds:g} s (timeout_seconds)'
      raise _Failure(f'{type(error).__name__}: {reason}', again=True) from None

  def item_fields(self) -> None:
    """Returns None: what a server reads cannot be told from here."""
    return None

  def close(self) -> None:
    """Does nothing: connections are closed after each answer."""


class _Pace:
  """Lets callers go on one after another, `rate` a second."""

  def __init__(self, rate: float | None):
    self._pause = 1 / rate if rate else 0.0
    self._next, self._lock = 0.0, threading.Lock()

  def wait(self) -> None:
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      self._next = turn + self._pause
    time.sleep(turn - now)


@functools.cache  # making one reads the certificates of this machine
def _opener():
  """Returns an opener that follows no redirect: the rows go to the host that the user named."""
  import urllib.request

  class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
      return None

  return urllib.request.build_opener(Stay)


def _body(item, sample) -> bytes:
  """Returns what is sent for one answer; raises ValueError where that cannot be."""
  try:
    body = json.dumps(
      {'sample': sample, 'item': item, 'trace_id': uuid.uuid4().hex}, allow_nan=False
    ).encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'item or sample is not JSON: {error}') from None
  if len(body) > LIMIT:
    raise ValueError(f'item and sample have {len(body)} bytes as JSON, need at most {LIMIT}')
  return body


def _read(response, deadline: float) -> bytes:
  """Returns the body of a response, by the deadline even if it drips in byte by byte."""
  parts, size = [], 0
  while part := response.read1(65536):
    parts.append(part)
    size += len(part)
    if size > LIMIT:
      raise _Failure(f'an answer of more than {LIMIT} bytes, need {{"score": number}}', again=False)
    if time.monotonic() > deadline:
      raise TimeoutError
  return b''.join(parts)


def _score(body: bytes) -> float:
  shown = body[:200].decode('utf-8', 'replace')
  try:
    answer = json.loads(body)
  except (ValueError, RecursionError):
    raise _Failure(f'an answer that is not JSON: {shown!r}', again=False) from None
  score = answer.get('score') if isinstance(answer, dict) else None
  try:
    good = not isinstance(score, bool) and isinstance(score, (int, float)) and math.isfinite(score)
  except OverflowError:  # an integer beyond every float
    good = False
  if not good:
    raise _Failure(f'{shown!r}, need {{"score": number}} with a finite number', again=False)
  return float(score)


def _status_failure(error) -> _Failure:
  if 300 <= error.code < 400:
    return _Failure(
      f'HTTP {error.code}, a redirect to {error.headers.get("Location")!r}, which is '
      'not followed; give the final address as url',
      again=False,
    )
  try:
    shown = error.read(200).decode('utf-8', 'replace')
  except OSError:  # the connection broke behind the status line
    shown = ''
  return _Failure(
    f'HTTP {error.code} {error.reason}: {shown!r}', again=error.code >= 500 or error.code in RETRIED
  )


def _resolved(value: str) -> str:
  return _VARIABLE.sub(lambda match: os.environ[match[1]], value)


def _url_problems(url: Any) -> list[str]:
  try:
    parts = urllib.parse.urlsplit(url) if isinstance(url, str) else None
    good = parts and parts.scheme in ('http', 'https') and parts.hostname and (parts.port or True)
    good = good and url.isascii() and not re.search(r'\s', url)
  except ValueError:
    good = False
  if not good:
    return [f'url={url!r}, need an address such as https://host/path']
  if parts.username or parts.password:
    return [
      'url holds a password, which would be written into the run; put it into headers as '
      '{"Authorization": "Bearer ${MY_KEY}"}, with MY_KEY in the environment'
    ]
  return []


def _header_problems(headers: Any) -> list[str]:
  """Returns what is wrong with headers, without the values of variables."""
  if not isinstance(headers, dict):
    return [f'headers is {template.kind(headers)}, need an object of strings']
  found = []
  for name, value in headers.items():
    if not isinstance(name, str) or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
      found.append(f'headers: {name!r} is no name of a header')
    elif not isinstance(value, str):
      found.append(f'headers.{name} is {template.kind(value)}, need a string')
    elif absent := [word for word in _VARIABLE.findall(value) if word not in os.environ]:
      found.append(
        f'headers.{name}: no environment variable {", ".join(absent)}; set it before '
        'the start (export NAME=...), its value is written nowhere'
      )
    elif not re.fullmatch(r'[\t\x20-\x7e\xa0-\xff]*', _resolved(value)):
      found.append(
        f'headers.{name}: the value holds a line break or another character that no header may hold'
      )
  return found
