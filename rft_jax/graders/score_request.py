"""HTTP requests of the `endpoint` grader: the body, one POST, and the score in its response."""

import functools
import json
import math
import time
import uuid
from typing import Any

MAX_BYTES = 2**20  # of a request and of a response
RETRIED_STATUSES = (408, 429)  # in addition to all from 500 on; other 4xx would repeat


class RequestError(Exception):
  """A request that yields no score. retryable: whether another attempt may succeed."""

  def __init__(self, details: str, *, retryable: bool):
    super().__init__(details)
    self.retryable = retryable


def make_body(item: dict[str, Any], sample: dict[str, Any]) -> bytes:
  """Returns the body of the request for one answer; raises ValueError if there is none."""
  try:
    body = json.dumps(
      {'sample': sample, 'item': item, 'trace_id': uuid.uuid4().hex}, allow_nan=False
    ).encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'item or sample is not JSON: {error}') from None
  if len(body) > MAX_BYTES:
    raise ValueError(f'item and sample have {len(body)} bytes as JSON, need at most {MAX_BYTES}')
  return body


def post(url: str, body: bytes, headers: dict[str, str], timeout_seconds: float) -> float:
  """Returns the score in the response to a POST of body; raises RequestError without one."""
  import http.client
  import urllib.error
  import urllib.request

  request = urllib.request.Request(url, body, headers, method='POST')
  deadline = time.monotonic() + timeout_seconds
  try:
    with _opener().open(request, timeout=timeout_seconds) as response:
      return _parse_score(_read_body(response, deadline))
  except urllib.error.HTTPError as error:
    with error:
      raise _status_error(error) from None
  except TimeoutError:
    raise RequestError(
      f'no response in {timeout_seconds:g} s (timeout_seconds)', retryable=True
    ) from None
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, 'reason', error)
    if isinstance(reason, TimeoutError):
      reason = f'no connection in {timeout_seconds:g} s (timeout_seconds)'
    raise RequestError(f'{type(error).__name__}: {reason}', retryable=True) from None


@functools.cache  # construction reads the certificates of this machine
def _opener():
  """Returns an opener that follows no redirect: rows are sent only to the host of the URL."""
  import urllib.request

  class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
      return None

  return urllib.request.build_opener(NoRedirect)


def _read_body(response, deadline: float) -> bytes:
  """Returns the body of a response; raises TimeoutError after the deadline, also in mid-body."""
  parts, size = [], 0
  while part := response.read1(65536):
    parts.append(part)
    size += len(part)
    if size > MAX_BYTES:
      raise RequestError(
        f'a response of more than {MAX_BYTES} bytes, need {{"score": number}}', retryable=False
      )
    if time.monotonic() > deadline:
      raise TimeoutError
  return b''.join(parts)


def _parse_score(body: bytes) -> float:
  excerpt = body[:200].decode('utf-8', 'replace')
  try:
    response = json.loads(body)
  except (ValueError, RecursionError):
    raise RequestError(f'a response that is not JSON: {excerpt!r}', retryable=False) from None
  score = response.get('score') if isinstance(response, dict) else None
  try:
    if isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score):
      return float(score)
  except OverflowError:  # an integer too large for a float
    pass
  raise RequestError(f'{excerpt!r}, need {{"score": number}} with a finite number', retryable=False)


def _status_error(error) -> RequestError:
  if 300 <= error.code < 400:
    return RequestError(
      f'HTTP {error.code}, a redirect to {error.headers.get("Location")!r}, which is '
      'not followed; give the final address as url',
      retryable=False,
    )
  try:
    excerpt = error.read(200).decode('utf-8', 'replace')
  except OSError:  # the connection broke after the status line
    excerpt = ''
  return RequestError(
    f'HTTP {error.code} {error.reason}: {excerpt!r}',
    retryable=error.code >= 500 or error.code in RETRIED_STATUSES,
  )
