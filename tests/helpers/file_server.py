"""A server of a folder's files over HTTP, with range requests, which fails as it is told to."""

import contextlib
import http.server
import pathlib
import random
import re
import socket
import threading
import time
import urllib.parse

FAULTS = ("503", "reset", "cut off", "slow", "damaged")


class FileServer:
  """Attributes: url; requests: (path, Range or '') of each; share: of the answers that fail;
  faults: how they may; ranges: whether a part is given where one is asked for."""

  def __init__(self, folder, share=0.0, faults=FAULTS, seed=0):
    self.requests, self.share, self.faults, self.ranges = [], share, faults, True
    self.failed = dict.fromkeys(FAULTS, 0)
    self._connections = []
    self._chance, self._lock = random.Random(seed), threading.Lock()
    owner, root = self, pathlib.Path(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def setup(self):
        super().setup()
        owner._connections.append(self.connection)

      def do_GET(self):
        owner.answer(self, root)

      def log_message(self, *_):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
    self._thread.start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    self._server.shutdown()
    self._server.server_close()
    for connection in self._connections:  # which stay open for further requests
      with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

  def _fault(self):
    with self._lock:
      if self._chance.random() >= self.share:
        return ""
      fault = self._chance.choice(self.faults)
      self.failed[fault] += 1
      return fault

  def answer(self, handler, root):
    path = root / urllib.parse.unquote(handler.path).lstrip("/")
    part = handler.headers.get("Range", "")
    self.requests.append((path.name, part))
    fault = self._fault()
    if fault == "503":
      handler.send_error(503)
      return
    if fault == "reset":
      handler.close_connection = True
      with contextlib.suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
      return
    if not path.is_file():
      handler.send_error(404)
      return
    content, status = path.read_bytes(), 200
    size = len(content)
    if part and self.ranges:
      first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", part).groups())
      content, status = content[first : last + 1], 206
      if not content:
        handler.send_error(416)
        return
    if fault == "damaged":
      content = bytes([content[0] ^ 1]) + content[1:]
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    if status == 206:
      handler.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{size}")
    handler.end_headers()
    if fault == "cut off":
      content, handler.close_connection = content[: len(content) // 2], True
    if fault == "slow":
      time.sleep(0.4)
    with contextlib.suppress(OSError):  # who asked may be gone
      handler.wfile.write(content)
