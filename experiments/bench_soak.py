"""A steady load for ten minutes: latencies and memory of the server, minute by minute.

  python experiments/bench_soak.py --tokenizer DIR [--minutes 10] [--rate 0.7] [--slots 16]

GPT-Neo 125M with random weights. Requests as those of bench_serve.py come at random moments, `rate`
a second on average; one in ten hangs up at its first token. What the server cannot take at that
rate shows as times that grow.
"""

import argparse
import asyncio
import collections
import dataclasses
import tempfile
import time

import bench
import bench_decode
import bench_serve
import httpx
import numpy as np
import tqdm

from gptneo_jax.data import load_tokenizer, save_tokenizer


@dataclasses.dataclass
class Asked:
  """A request: the second that it came, seconds to its first token and to its end, its status."""

  came: float
  first: float = 0.0
  whole: float = 0.0
  status: int = 0
  left: bool = False


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokenizer", default="openai-community/gpt2")
  parser.add_argument("--minutes", type=float, default=10.0)
  parser.add_argument("--rate", type=float, default=0.7)
  parser.add_argument("--slots", type=int, default=16)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    bench_decode.make_model(folder, args.dtype)
    save_tokenizer(load_tokenizer(args.tokenizer), folder)
    with bench_serve.serving(folder, args.slots, args.dtype) as url:
      asked, memory = asyncio.run(load(url, args.minutes * 60, args.rate))
  whole = [one for one in asked if not one.left]
  bench.record(
    "bench_soak",
    {
      "dtype": args.dtype,
      "slots": args.slots,
      "minutes": args.minutes,
      "requests_per_second": args.rate,
      "requests": len(asked),
      "hung_up": len(asked) - len(whole),
      "statuses": dict(collections.Counter(str(one.status) for one in asked)),
      "seconds_to_first_token": by_minute(asked, "first"),
      "seconds_to_the_end": by_minute(whole, "whole"),
      "memory_MiB": memory,
    },
    panels,
  )


async def load(url: str, seconds: float, rate: float) -> tuple[list[Asked], dict[str, float]]:
  """Sends the requests; returns them, and the server's memory at the end of each minute, MiB."""
  rng = np.random.default_rng(0)
  gaps = rng.exponential(1 / rate, int(seconds * rate * 2) + 10)
  came = [moment for moment in np.cumsum(gaps) if moment < seconds]
  asked = [Asked(moment) for moment in came]
  requests, memory = bench_serve.some_requests(len(asked)), {}
  began = time.perf_counter()
  async with httpx.AsyncClient(base_url=url, timeout=3600, limits=httpx.Limits()) as client:

    async def watch() -> None:
      for minute in range(int(seconds // 60) + 1):
        await asyncio.sleep(began + 60 * minute - time.perf_counter())
        memory[str(minute)] = await resident_mib(client)

    with tqdm.tqdm(total=len(asked), unit="request") as bar:
      going = [asyncio.create_task(watch())]
      for one, (prompt, new) in zip(asked, requests):
        await asyncio.sleep(began + one.came - time.perf_counter())
        one.left = bool(rng.random() < 0.1)
        going.append(asyncio.create_task(ask(client, one, prompt, new)))
        bar.update()
      await asyncio.gather(*going)
  return asked, memory


async def ask(client: httpx.AsyncClient, one: Asked, prompt: list[int], new: int) -> None:
  body = bench_serve.body_of(prompt, new) | {"stream": True, "logprobs": 0}
  began = time.perf_counter()
  async with client.stream("POST", "/v1/completions", json=body) as answer:
    one.status = answer.status_code
    async for line in answer.aiter_lines():
      if line.startswith("data: {") and not one.first:
        one.first = time.perf_counter() - began
        if one.left:
          return
  one.whole = time.perf_counter() - began


async def resident_mib(client: httpx.AsyncClient) -> float:
  text = (await client.get("/metrics")).text
  lines = (line.split() for line in text.splitlines())
  return (
    next(float(line[1]) for line in lines if line[0] == "process_resident_memory_bytes") / 2**20
  )


def by_minute(asked: list[Asked], name: str) -> dict[str, dict[str, float]]:
  """Percentiles of the requests that came in each minute."""
  minutes = collections.defaultdict(list)
  for one in asked:
    minutes[str(int(one.came // 60))].append(getattr(one, name))
  return {
    minute: {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}
    for minute, values in minutes.items()
  }


def panels(results: dict) -> list[bench.Panel]:
  """Drawn over the minutes."""

  def percentiles(name: str) -> dict[str, dict[int, float]]:
    rows = results[name].items()
    return {p: {int(minute): row[p] for minute, row in rows} for p in ("p50", "p95", "p99")}

  memory = {int(minute): mib for minute, mib in results["memory_MiB"].items()}
  return [
    bench.Panel("to the first token", "seconds", percentiles("seconds_to_first_token"), "minute"),
    bench.Panel("to the end", "seconds", percentiles("seconds_to_the_end"), "minute"),
    bench.Panel("resident memory", "MiB", {"server": memory}, "minute"),
  ]


if __name__ == "__main__":
  main()
