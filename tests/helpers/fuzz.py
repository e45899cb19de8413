"""Random bodies for a server's routes: python -m tests.helpers.fuzz URL [COUNT [SEED]].

Prints the statuses of the answers, and fails where one is of the server's own fault, or there is
none.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import sys
from typing import Any

import httpx

ROUTES = (
  "/v1/completions", "/v1/chat/completions", "/v1/classify", "/tokenize", "/detokenize",
)  # fmt: skip
_AT_ONCE = 16
_TEXTS = ("", "a", "the quick brown fox", "☂ é\u0000", "<|endoftext|>", "x" * 3000, "\\ud800")
_FIELDS = (
  "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "best_of", "stop", "seed",
  "echo", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty",
  "stream", "stream_options", "suffix", "tools", "model", "user", "input", "tokens", "top_k",
  "min_p", "no_repeat_ngram_size", "bad_words_ids", "min_tokens", "ignore_eos", "typical_p",
  "num_beams", "max_completion_tokens", "repetition_penalty", "suppress_tokens", "nothing",
)  # fmt: skip


def _value(rng: random.Random, depth: int = 0) -> Any:
  """Any value of JSON, or nearly one."""
  simple = (
    lambda: rng.choice(_TEXTS),
    lambda: rng.randint(-3, 60),
    lambda: rng.choice([-1, 0, 2**31, 2**63, 10**30]),
    lambda: rng.choice([0.0, 0.5, 1.0, -0.5, 1e-9, 1e300, 2.5]),
    lambda: rng.choice([True, False, None]),
    lambda: [rng.randint(0, 270) for _ in range(rng.randint(0, 9))],
    lambda: {"role": rng.choice(["user", "assistant", "system", "tool"]), "content": "fox"},
  )
  if depth < 3 and rng.random() < 0.2:
    if rng.random() < 0.5:
      return [_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {str(rng.randint(0, 300)): _value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
  return rng.choice(simple)()


def _plausible(rng: random.Random) -> dict[str, Any]:
  """A body that may well be right."""
  body: dict[str, Any] = {
    "prompt": rng.choice(["the quick", ["fox", "dog"], [5, 6, 7], [[5], [6, 7]]]),
    "messages": [{"role": "user", "content": "the quick"}],
    "input": rng.choice(["a", ["a", "b"], {"text": "a"}]),
    "tokens": [5, 6],
    "max_tokens": rng.randint(1, 8),
  }
  for name in rng.sample(_FIELDS, rng.randint(0, 4)):
    body[name] = _value(rng)
  return body


def bodies(seed: int, count: int):
  rng = random.Random(seed)
  for _ in range(count):
    kind = rng.random()
    if kind < 0.7:
      body = json.dumps(_plausible(rng))
    elif kind < 0.9:
      body = json.dumps({name: _value(rng) for name in rng.sample(_FIELDS, 5)})
    else:
      body = json.dumps(_value(rng))
    if kind > 0.95:  # cut, or with bytes that belong to no text
      body = body[: rng.randint(0, len(body))] + rng.choice(["", "}", "\udcff", "NaN"])
    yield body.encode(errors="surrogateescape")


async def statuses(url: str, count: int, seed: int = 0) -> collections.Counter:
  """Sends so many bodies to each route; how often each status came, 0 for none."""
  found: collections.Counter = collections.Counter()
  limits = httpx.Limits(max_connections=_AT_ONCE)
  async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
    turn = asyncio.Semaphore(_AT_ONCE)

    async def send(route: str, body: bytes) -> None:
      async with turn:
        try:
          answer = await client.post(route, content=body)
          found[answer.status_code] += 1
          if answer.status_code >= 500:
            print(route, body[:500], answer.text[:500], file=sys.stderr)
          elif answer.status_code >= 400:
            assert "message" in answer.json()["error"]
        except httpx.HTTPError as error:
          found[0] += 1
          print(route, body[:500], repr(error), file=sys.stderr)

    for number, route in enumerate(ROUTES):
      await asyncio.gather(*(send(route, body) for body in bodies(seed + number, count)))
  return found


if __name__ == "__main__":
  counted = asyncio.run(statuses(sys.argv[1], *map(int, sys.argv[2:])))
  print(dict(counted))
  sys.exit(any(status == 0 or status >= 500 for status in counted))
