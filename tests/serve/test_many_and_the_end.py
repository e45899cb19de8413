"""Many clients at once, those who leave or send anything; how a server starts and ends."""

import asyncio
import contextlib
import json
import random
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
  seeds, got = range(24), {}

  def ask(seed):
    made = client.completions.create(
      model="fox", prompt=PROMPT, max_tokens=3 + seed, seed=seed, temperature=1.2
    )
    got[seed] = made.choices[0].text

  threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for seed in seeds:
    expected = lm.generate(
      PROMPT, max_new_tokens=3 + seed, seed=seed, do_sample=True, top_k=0, temperature=1.2
    )
    assert got[seed] == expected.texts[0]


def test_clients_that_hang_up(server, client, lm):
  """At random moments, waiting for a slot, for a stream or for a whole answer; no slot is lost."""
  rng = random.Random(0)

  async def leave(http, stream: bool, seconds: float) -> None:
    body = {"prompt": PROMPT, "max_tokens": 100, "stream": stream, "ignore_eos": True}
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(http.post("/v1/completions", json=body), seconds)

  async def all_of_them() -> None:
    headers, limits = {"Authorization": f"Bearer {KEY}"}, httpx.Limits(max_connections=30)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, limits=limits) as http:
      for _ in range(10):
        leaving = [leave(http, rng.random() < 0.5, 0.4 * rng.random()) for _ in range(20)]
        await asyncio.gather(*leaving)

  asyncio.run(all_of_them())
  made = client.completions.create(model="fox", prompt=PROMPT, max_tokens=9, temperature=0)
  assert made.choices[0].text == lm.generate(PROMPT, max_new_tokens=9).texts[0]
  until = time.monotonic() + 20
  while "gptneo_jax_rows 0.0" not in curl(server, "/metrics", "", "-X", "GET")[1]:
    assert time.monotonic() < until, "a slot is lost"
    time.sleep(0.2)


def test_random_bodies(folder):
  """Whatever is sent, the answer is one or says what is wrong."""
  with serving(folder, "--slots", "2") as served:
    found = asyncio.run(fuzz.statuses(served.url, 150))
    assert set(found) <= {200, 400, 404, 422, 429}
    assert found[200] > 100 and found[400] > 100
    status, text = curl(served, "/v1/completions", {"prompt": PROMPT, "max_tokens": 3})
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 3


def test_sigterm_lets_streams_finish(folder):
  with serving(folder, "--slots", "2") as served:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    streams = [
      client.completions.create(
        model="fox", prompt=PROMPT, max_tokens=90, seed=n, stream=True,
        extra_body={"ignore_eos": True, "min_p": 0.0},
      )
      for n in range(4)
    ]  # fmt: skip
    first = next(streams[0]).choices[0].text
    served.process.send_signal(signal.SIGTERM)
    texts = ["".join(piece.choices[0].text for piece in stream) for stream in streams]
    assert all(texts) and first
    assert served.process.wait(30) == 0


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
