"""An HTTP server in a thread of this process, that answers as a test tells it to."""

import contextlib
import http.server
import json
import threading
import time


class Reply:
  """What the server does with one request: status, body and headers, after some seconds."""

  def __init__(self, body=b'', status=200, headers=(), seconds=0.0):
    self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.status, self.headers, self.seconds = status, dict(headers), seconds


class Server:
  """url, and what was asked: [{'path', 'headers', 'body'}]; most_at_once overlapped."""

  def __init__(self, answer):
    self.answer, self.requests, self.most_at_once = answer, [], 0
    self._under_way, self._lock = 0, threading.Lock()

  def handle(self, handler):
    body = handler.rfile.read(int(handler.headers.get('Content-Length') or 0))
    with self._lock:
      self._under_way += 1
      self.most_at_once = max(self.most_at_once, self._under_way)
      number = len(self.requests)
      request = {'path': handler.path, 'headers': handler.headers, 'body': json.loads(body)}
      self.requests.append(request)
    reply = self.answer(request, number)
    time.sleep(reply.seconds)
    with self._lock:
      self._under_way -= 1
    with contextlib.suppress(OSError):  # who asked may be gone
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
  """Runs a Server; answer(request, number of the request) gives a Reply."""
  server = Server(answer)

  class Handler(http.server.BaseHTTPRequestHandler):
    do_POST = do_GET = lambda self: server.handle(self)
    log_message = lambda *_: None

  listening = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.url = f'http://127.0.0.1:{listening.server_port}'
  thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    listening.shutdown()
    listening.server_close()
    thread.join()
