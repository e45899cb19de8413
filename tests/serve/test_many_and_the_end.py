"""Many clients at once, those who leave or send anything; how a server starts and ends."""

import asyncio
import concurrent.futures
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

import gptneo_jax
from tests.helpers import fuzz, headed_folders
from tests.helpers.served import KEY, PROMPT, curl, serving
from tests.helpers.text_models import TINY, make


def test_many_at_once(client, lm):
  """More than there are slots: each gets its own text."""
  seeds, got = range(64), {}

  def ask(seed):
    made = client.completions.create(
      model="fox", prompt=PROMPT, max_tokens=3 + seed % 24, seed=seed, temperature=1.2
    )
    got[seed] = made.choices[0].text

  threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for seed in seeds:
    expected = lm.generate(
      PROMPT, max_new_tokens=3 + seed % 24, seed=seed, do_sample=True, top_k=0, temperature=1.2
    )
    assert got[seed] == expected.texts[0]


def figure(server, name):
  """One of /metrics."""
  _, text = curl(server, "/metrics", "", "-X", "GET")
  found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
  assert found, text
  return float(found[1])


def no_rows_are_left(server, seconds=20.0):
  until = time.monotonic() + seconds
  while figure(server, "gptneo_jax_rows"):
    assert time.monotonic() < until, "a slot is lost"
    time.sleep(0.2)


def is_well(client, lm):
  made = client.completions.create(model="fox", prompt=PROMPT, max_tokens=9, temperature=0)
  assert made.choices[0].text == lm.generate(PROMPT, max_new_tokens=9).texts[0]


def test_clients_that_hang_up(server, client, lm):
  """At random moments, waiting for a slot, for a stream or for a whole answer; no slot is lost."""
  rng = random.Random(0)

  async def leave(http, stream: bool, seconds: float) -> None:
    body = {"prompt": PROMPT, "max_tokens": 100, "stream": stream, "ignore_eos": True}
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(http.post("/v1/completions", json=body), seconds)

  async def leave_all() -> None:
    headers, limits = {"Authorization": f"Bearer {KEY}"}, httpx.Limits(max_connections=30)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, limits=limits) as http:
      for _ in range(10):
        leaving = [leave(http, rng.random() < 0.5, 0.4 * rng.random()) for _ in range(20)]
        await asyncio.gather(*leaving)

  memory = []
  for _ in range(3):
    asyncio.run(leave_all())
    is_well(client, lm)
    no_rows_are_left(server)
    memory.append(figure(server, "process_resident_memory_bytes") / 2**20)
  assert memory[2] - memory[1] < 16, memory  # MiB


def raw(server, body, **options):
  """A socket on which a completion has been asked for."""
  sent = json.dumps({"prompt": PROMPT, **body}).encode()
  head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(sent)}\r\n"
  connection = socket.socket()
  for name, value in options.items():
    connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
  connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
  connection.sendall(f"{head}Authorization: Bearer {KEY}\r\n\r\n".encode() + sent)
  return connection


def test_a_client_that_does_not_read(server, client, lm):
  """It takes its slots no longer than one that reads, and nobody waits for it."""
  body = {"max_tokens": 100, "n": 40, "stream": True, "logprobs": 5, "ignore_eos": True}
  with raw(server, body, SO_RCVBUF=1024) as connection:
    assert connection.recv(12) == b"HTTP/1.1 200"
    is_well(client, lm)
    no_rows_are_left(server)
    is_well(client, lm)


def test_a_thousand_connections(server, client, lm):
  """Most say nothing; of those who ask at once, as many are answered as there is room for."""
  with contextlib.ExitStack() as stack:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    for _ in range(800):
      stack.enter_context(socket.create_connection(address, timeout=60))
    asking = [stack.enter_context(raw(server, {"max_tokens": 50})) for _ in range(200)]
    statuses = []
    for connection in asking:
      connection.settimeout(60)
      statuses.append(int(connection.recv(12).split()[1]))
    # Four slots and sixty that may wait; others come when some of these are done.
    assert set(statuses) == {200, 429} and statuses.count(200) >= 64
    is_well(client, lm)
  no_rows_are_left(server)


def test_random_bodies(folder):
  """Whatever is sent, the answer is one or says what is wrong."""
  with serving(folder, "--slots", "2") as served:
    found = asyncio.run(fuzz.statuses(served.url, 150))
    assert set(found) <= {200, 400, 404, 422, 429}
    assert found[200] > 100 and found[400] > 100
    status, text = curl(served, "/v1/completions", {"prompt": PROMPT, "max_tokens": 3})
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("drain_seconds", [30.0, 0.2])
def test_sigterm_during_streams(folder, drain_seconds):
  """Each of twenty ends whole, or with an error that says why; then the server ends by itself."""
  begun = threading.Event()

  def read(n: int) -> str:
    text = ""
    try:
      for piece in client.completions.create(
        model="fox", prompt=PROMPT, max_tokens=100, seed=n, stream=True,
        extra_body={"ignore_eos": True},
      ):  # fmt: skip
        begun.set()
        text = piece.choices[0].finish_reason or ""
    except openai.APIError as error:
      text = error.message
    return text

  with serving(folder, "--slots", "4", "--drain_seconds", str(drain_seconds)) as served:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
      reading = [pool.submit(read, n) for n in range(20)]
      assert begun.wait(60)
      while figure(served, "gptneo_jax_rows") < 15:
        time.sleep(0.01)
      served.process.send_signal(signal.SIGTERM)
      ends = [one.result(60) for one in reading]
    assert served.process.wait(30) == 0
  whole, told = ends.count("length"), sum("shut" in end for end in ends)
  assert whole + told == 20, ends
  assert (told == 0) if drain_seconds > 1 else (told > 0)


def test_what_stops_it_at_the_start(folder, tmp_path):
  run = lambda *arguments: subprocess.run(
    [sys.executable, "-m", "gptneo_jax.serve", *arguments], capture_output=True, text=True,
    timeout=120,
  )  # fmt: skip
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = str(taken.getsockname()[1])
    done = run("--checkpoint", folder, "--port", port)
  assert done.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  bare = str(tmp_path / "bare")
  make(TINY).save(bare)
  done = run("--checkpoint", bare, "--port", "0")
  assert done.returncode == 1 and "has no tokenizer" in done.stderr


def test_a_classifier(tmp_path):
  path = headed_folders.spam(tmp_path / "spam")
  texts = ["WINNER! Call now", "see you at 8"]
  with serving(path) as served:
    status, text = curl(served, "/v1/classify", {"input": texts})
    assert status == 200
    expected = gptneo_jax.load(path).predict(texts)
    for got, one in zip(json.loads(text)["data"], expected):
      assert got["label"] == one["label"]
      for name, probability in one["probabilities"].items():
        assert got["probabilities"][name] == pytest.approx(probability, abs=1e-6)
    assert curl(served, "/v1/classify", {"input": []})[0] == 400
    assert curl(served, "/v1/classify", {"input": [{"no": 1}]})[0] == 400
    assert curl(served, "/v1/completions", {"prompt": "a"})[0] == 404
