"""An HTTP server in a thread of this process with scripted replies."""

import contextlib
import http.server
import json
import threading
import time


class Reply:
  """Reply to one request: status, body and headers, after a delay in seconds."""

  def __init__(self, body=b'', status=200, headers=(), seconds=0.0):
    self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.status, self.headers, self.seconds = status, dict(headers), seconds


class Server:
  """A running server.

  Attributes:
    url: where it listens.
    requests: received so far, [{'path', 'headers', 'body'}].
    max_concurrent: the largest number of requests that were handled at the same time.
  """

  def __init__(self, answer):
    self.answer, self.requests, self.max_concurrent = answer, [], 0
    self._active, self._lock = 0, threading.Lock()

  def handle(self, handler):
    body = handler.rfile.read(int(handler.headers.get('Content-Length') or 0))
    with self._lock:
      self._active += 1
      self.max_concurrent = max(self.max_concurrent, self._active)
      number = len(self.requests)
      request = {'path': handler.path, 'headers': handler.headers, 'body': json.loads(body)}
      self.requests.append(request)
    reply = self.answer(request, number)
    time.sleep(reply.seconds)
    with self._lock:
      self._active -= 1
    with contextlib.suppress(OSError):  # the client may have disconnected
      handler.send_response(reply.status)
      for name, value in {
        'Content-Length': len(reply.body),
        'Content-Type': 'application/json',
        **reply.headers,
      }.items():
        handler.send_header(name, str(value))
      handler.end_headers()
      handler.wfile.write(reply.body)


@contextlib.contextmanager
def serving(answer):
  """Runs a Server; answer(request, index of the request) returns the Reply."""
  server = Server(answer)

  class Handler(http.server.BaseHTTPRequestHandler):
    do_POST = do_GET = lambda self: server.handle(self)
    log_message = lambda *_: None

  http_server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.url = f'http://127.0.0.1:{http_server.server_port}'
  thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    http_server.shutdown()
    http_server.server_close()
    thread.join()
