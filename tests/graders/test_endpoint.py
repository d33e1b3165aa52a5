"""endpoint: requests, responses that are scores, retries, limits and secrets."""

import json
import socket
import threading
import time

import local_server
import pytest
from local_server import Reply

from rft_jax import graders
from rft_jax.graders import endpoint
from rft_jax.types import Grade

ITEM, SAMPLE = {'answer': 'X', 'n': 1}, {'output_text': 'é', 'output_tools': []}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
  monkeypatch.setattr(endpoint, 'BACKOFF_SECONDS', 0.001)
  monkeypatch.setenv('no_proxy', '*')


def make(url, **fields):
  return graders.make({'type': 'endpoint', 'name': 'far', 'url': url, **fields})


def grade_one(reply, **fields):
  """Returns (the grade of one answer, the requests to the server); reply makes its responses."""
  with local_server.serving(reply) as server:
    return make(server.url + '/score', **fields)(ITEM, SAMPLE), server.requests


def details(grade) -> str:
  assert grade.reward is None and grade.components == {'far': None}
  assert grade.errors['endpoint_grader_server_error'] is True
  return grade.errors['endpoint_grader_server_error_details']


def test_sample_and_item_are_posted_and_the_response_is_the_score():
  grade, requests = grade_one(
    lambda request, _: Reply({'score': request['body']['item']['n'] + 0.5})
  )
  assert grade == Grade(1.5, {'far': 1.5}, {})
  [request] = requests
  assert request['path'] == '/score' and request['headers']['Content-Type'] == 'application/json'
  assert request['body']['sample'] == SAMPLE and request['body']['item'] == ITEM
  assert set(request['body']) == {'sample', 'item', 'trace_id'}


@pytest.mark.parametrize('status', [500, 503, 429])
def test_a_transient_status_is_retried_with_the_same_trace_id(status):
  grade, requests = grade_one(lambda _, n: Reply({'score': 1}) if n == 2 else Reply(b'', status))
  assert grade.reward == 1.0 and len(requests) == 3
  assert len({request['body']['trace_id'] for request in requests}) == 1


def test_trace_ids_of_two_answers_differ():
  with local_server.serving(lambda *_: Reply({'score': 1})) as server:
    graders.grade_many(make(server.url), [(ITEM, SAMPLE)] * 2)
    assert len({request['body']['trace_id'] for request in server.requests}) == 2


def test_after_three_retries_it_is_a_grader_fault():
  grade, requests = grade_one(lambda *_: Reply(b'overloaded', 500))
  assert len(requests) == 4
  assert 'HTTP 500' in details(grade) and 'overloaded' in details(grade)
  assert '4 attempts' in details(grade)
  assert len(grade_one(lambda *_: Reply(b'', 500), retries=0)[1]) == 1


@pytest.mark.parametrize(
  'reply, words',
  [
    (Reply(b'no such row', 404), "HTTP 404 Not Found: 'no such row'"),
    (Reply(b'hello'), "not JSON: 'hello'"),
    (Reply({'grade': 1}), 'need {"score": number}'),
    (Reply(b'{"score": NaN}'), 'finite'),
    (Reply(b'{"score": 1e999}'), 'finite'),
    (Reply(b'{"score": 1' + b'0' * 400 + b'}'), 'finite'),
    (Reply({'score': True}), 'need'),
    (Reply({'score': '1'}), 'need'),
    (Reply({'score': None}), 'need'),
    (Reply([1]), 'need'),
    (Reply(b'[' * 100_000), 'not JSON'),
    (Reply(b'\xff\xfe'), 'not JSON'),
    (Reply(b' ' * (2**20 + 1)), 'more than 1048576 bytes'),
  ],
)
def test_a_permanent_error_is_a_grader_fault_without_a_retry(reply, words):
  grade, requests = grade_one(lambda *_: reply)
  assert words in details(grade) and len(requests) == 1


@pytest.mark.parametrize('status', [301, 302, 307, 308])
def test_no_redirect_is_followed(status):
  with local_server.serving(lambda *_: Reply({'score': 1})) as elsewhere:
    grade, requests = grade_one(lambda *_: Reply(b'', status, {'Location': elsewhere.url}))
    assert 'redirect' in details(grade) and elsewhere.url in details(grade)
    assert len(requests) == 1 and elsewhere.requests == []


def test_a_time_out_is_retried():
  start = time.monotonic()
  grade, requests = grade_one(
    lambda _, n: Reply({'score': 1}, seconds=0.6 if n == 0 else 0), timeout_seconds=0.2
  )
  assert grade.reward == 1.0 and len(requests) == 2 and time.monotonic() - start < 5
  grade, requests = grade_one(
    lambda *_: Reply({'score': 1}, seconds=0.4), timeout_seconds=0.1, retries=1
  )
  assert 'timeout_seconds' in details(grade) and len(requests) == 2


def test_a_response_that_arrives_too_slowly_is_a_time_out():
  with socket.create_server(('127.0.0.1', 0)) as server:

    def drip():
      connection, _ = server.accept()
      with connection:
        connection.recv(65536)
        connection.sendall(b'HTTP/1.0 200 OK\r\n\r\n')
        try:
          for _ in range(100):
            connection.sendall(b' ')
            time.sleep(0.05)
        except OSError:
          pass  # the grader has closed the connection

    thread = threading.Thread(target=drip)
    thread.start()
    start = time.monotonic()
    grade = make(f'http://127.0.0.1:{server.getsockname()[1]}', timeout_seconds=0.3, retries=0)(
      ITEM, SAMPLE
    )
    assert 'timeout_seconds' in details(grade) and time.monotonic() - start < 2
    thread.join()


def test_a_refused_connection_is_a_grader_fault_after_retries():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  grade = make(f'http://127.0.0.1:{port}')(ITEM, SAMPLE)
  assert 'refused' in details(grade) and '4 attempts' in details(grade)


@pytest.mark.parametrize(
  'item, words',
  [
    ({'text': 'x' * 2**20}, 'need at most 1048576'),
    ({'x': float('nan')}, 'not JSON'),
    ({'x': {1, 2}}, 'not JSON'),
  ],
)
def test_a_row_that_cannot_be_sent_is_a_grader_fault_without_a_request(item, words):
  with local_server.serving(lambda *_: Reply({'score': 1})) as server:
    grade = make(server.url)(item, SAMPLE)
    assert grade.reward is None and server.requests == []
    assert grade.errors['endpoint_grader_internal_error'] is True
    assert words in grade.errors['endpoint_grader_internal_error_details']


def test_concurrency_bounds_the_requests_in_flight():
  reply = lambda request, _: Reply({'score': request['body']['item']['n']}, seconds=0.1)
  with local_server.serving(reply) as server:
    grades = graders.grade_many(
      make(server.url, concurrency=3), [({'n': n}, SAMPLE) for n in range(9)]
    )
    assert [grade.reward for grade in grades] == list(range(9))
    assert server.max_concurrent == 3


def test_the_rate_limit_holds_over_all_threads():
  with local_server.serving(lambda *_: Reply({'score': 1})) as server:
    grader, start = make(server.url, rate_limit=20), time.monotonic()
    graders.grade_many(grader, [(ITEM, SAMPLE)] * 7)
    assert time.monotonic() - start >= 6 / 20


def test_a_key_of_the_environment_is_sent_and_not_recorded(monkeypatch):
  monkeypatch.setenv('FAR_KEY', 'secret-7')
  headers = {'Authorization': 'Bearer ${FAR_KEY}', 'X-Run': 'a'}
  with local_server.serving(
    lambda request, _: Reply(request['headers']['Authorization'].encode(), 400)
  ) as server:
    grader = make(server.url, headers=headers)
    grade = grader(ITEM, SAMPLE)
    assert server.requests[0]['headers']['Authorization'] == 'Bearer secret-7'
    assert server.requests[0]['headers']['X-Run'] == 'a'
  assert graders.describe(grader)['headers'] == headers
  assert 'Bearer ***' in details(grade)
  assert 'secret-7' not in repr(grader) + json.dumps(graders.describe(grader)) + details(grade)


def test_all_problems_are_listed(monkeypatch):
  monkeypatch.delenv('NO_SUCH_KEY', raising=False)
  monkeypatch.setenv('TWO_LINES', 'a\nb')
  with pytest.raises(ValueError) as caught:
    make(
      'ftp://x',
      rate_limit=0,
      timeout_seconds='1',
      retries=-1,
      concurrency=True,
      headers={'A': '${NO_SUCH_KEY}', 'B': 1, 'C D': 'x', 'E': '${TWO_LINES}'},
      pass_treshold=1,
    )
  for words in (
    "url='ftp://x'",
    'rate_limit=0',
    "timeout_seconds='1'",
    'retries=-1',
    'concurrency=True',
    'headers.A: no environment variable NO_SUCH_KEY',
    'headers.B is a number',
    "headers: 'C D'",
    'headers.E',
    "'pass_threshold'",
  ):
    assert words in str(caught.value)
  with pytest.raises(ValueError, match='url holds a password'):
    make('https://user:word@host/x')


@pytest.mark.parametrize('url', ['', 'host/path', 'http://', 'http://a b/', 'http://h:x/', None])
def test_an_invalid_url_is_refused(url):
  with pytest.raises(ValueError, match='need an address'):
    make(url)
