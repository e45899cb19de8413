"""Many requests at once: the server beside one after another, static batches, and transformers.

  python experiments/bench_serve.py --tokenizer DIR [--rounds 1] [--requests 32] [--slots 16]

GPT-Neo 125M with random weights, the same everywhere; greedy; prompts of 16 to 512 tokens and
answers of 16 to 128, all lengths equally likely. The sides alternate in one run:

  server        a process of its own, all requests sent at once over HTTP
  one by one    lm.generate, one request after another
  batches of 8  lm.generate on eight prompts at a time, each batch until its longest answer is done
  transformers  its generate on the same batches of eight; it pads on the left

Then, over HTTP: how long each of 64 requests that come at once waits for its first token; and the
time to the first token of a conversation's second turn, alone and while half of the slots are in
use, with the cache of its first turn and without.
"""

import argparse
import concurrent.futures
import contextlib
import subprocess
import sys
import tempfile
import threading
import time

import bench
import bench_decode
import httpx
import numpy as np

import gptneo_jax
from gptneo_jax.data import load_tokenizer, save_tokenizer

_BATCH = 8
_AT_ONCE = 64


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokenizer", default="openai-community/gpt2")
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--requests", type=int, default=32)
  parser.add_argument("--slots", type=int, default=16)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  requests = some_requests(args.requests)
  with tempfile.TemporaryDirectory() as folder:
    theirs = bench_decode.make_model(folder, args.dtype)
    save_tokenizer(load_tokenizer(args.tokenizer), folder)
    lm = gptneo_jax.load(folder, dtype=args.dtype)
    with serving(folder, args.slots, args.dtype) as url:
      sides = {
        "server": lambda: over_http(url, requests),
        "one by one": lambda: one_by_one(lm, requests),
        f"batches of {_BATCH}": lambda: in_batches(lm, requests),
        "transformers": lambda: by_transformers(theirs, requests),
      }
      times = measured(sides, [new for _, new in requests], args.rounds)
      together = waits(url, some_requests(_AT_ONCE))
      alone, busy = (second_turns(url, others) for others in (0, args.slots // 2))
  tokens = sum(new for _, new in requests)
  bench.record(
    "bench_serve",
    {
      "dtype": args.dtype,
      "slots": args.slots,
      "requests": len(requests),
      "prompt_tokens": sum(len(prompt) for prompt, _ in requests),
      "new_tokens": tokens,
      "seconds": times,
      "tokens_per_second": {name: tokens / row["median"] for name, row in times.items()},
      "times_faster": {
        name: bench.ratio(times, name, "server") for name in times if name != "server"
      },
      f"{_AT_ONCE}_at_once": together,
      "seconds_to_first_token_of_second_turn": {"alone": alone, "half_load": busy},
    },
  )


def some_requests(count: int) -> list[tuple[list[int], int]]:
  """(ids of a prompt, new tokens) of each."""
  rng = np.random.default_rng(0)
  return [
    (rng.integers(0, 50257, rng.integers(16, 513)).tolist(), int(rng.integers(16, 129)))
    for _ in range(count)
  ]


@contextlib.contextmanager
def serving(folder: str, slots: int, dtype: str):
  """The server in a process of its own, all compiled; gives its address."""
  command = [
    sys.executable, "-m", "gptneo_jax.serve", "--checkpoint", folder, "--port", "0",
    "--slots", str(slots), "--dtype", dtype,
  ]  # fmt: skip
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    url = next(line.split()[-1] for line in process.stdout if line.startswith("serving"))
    while httpx.get(f"{url}/health").json()["compiled"] < 1:
      time.sleep(1)
    yield url
  finally:
    process.terminate()
    process.wait()


def body_of(prompt: list[int], new: int) -> dict:
  """Of a greedy request whose answer is as long as asked for."""
  return {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}


def complete(url: str, prompt: list[int], new: int) -> dict:
  answer = httpx.post(f"{url}/v1/completions", json=body_of(prompt, new), timeout=3600)
  answer.raise_for_status()
  return answer.json()


def first_token(url: str, prompt: list[int], new: int) -> float:
  """Seconds to the first token of a stream, which is read to its end."""
  body = body_of(prompt, new) | {"stream": True, "logprobs": 0}
  began = time.perf_counter()
  with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=3600) as answer:
    answer.raise_for_status()
    lines = answer.iter_lines()
    next(line for line in lines if line.startswith("data: {"))
    seconds = time.perf_counter() - began
    for _ in lines:
      pass
  return seconds


def over_http(url: str, requests) -> list[int]:
  """All at once. The same prompts come in every round: what is kept of them must not help, so each
  begins with another token."""
  lead = int(time.time_ns() % 50000)
  with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
    asked = [pool.submit(complete, url, [lead, *prompt[1:]], new) for prompt, new in requests]
    return [one.result()["usage"]["completion_tokens"] for one in asked]


def one_by_one(lm, requests) -> list[int]:
  return [
    int(lm.generate([prompt], max_new_tokens=new, eos_token_id=-1).lengths[0])
    for prompt, new in requests
  ]


def batches(requests):
  return [requests[i : i + _BATCH] for i in range(0, len(requests), _BATCH)]


def in_batches(lm, requests) -> list[int]:
  made = []
  for batch in batches(requests):
    longest = max(new for _, new in batch)
    lm.generate([prompt for prompt, _ in batch], max_new_tokens=longest, eos_token_id=-1)
    made += [new for _, new in batch]
  return made


def by_transformers(model, requests) -> list[int]:
  import torch

  made = []
  for batch in batches(requests):
    width = max(len(prompt) for prompt, _ in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(batch):
      ids[row, width - len(prompt) :] = torch.tensor(prompt, device=model.device)
      mask[row, width - len(prompt) :] = 1
    with torch.no_grad():
      model.generate(
        ids, attention_mask=mask, max_new_tokens=max(new for _, new in batch), do_sample=False,
        pad_token_id=0,
      )  # fmt: skip
    made += [new for _, new in batch]
  return made


def measured(sides, new_tokens: list[int], rounds: int) -> dict[str, dict]:
  """As bench.alternate, but a call takes half a minute and more: ours compile in one, unseen."""
  for name, side in sides.items():
    if name != "transformers":
      assert side() == new_tokens, name
  samples: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(rounds):
    for name, side in sides.items():
      samples[name].append(bench.seconds(side))
  return {name: {**bench.spread(row), "rounds": row} for name, row in samples.items()}


def waits(url: str, requests) -> dict:
  """Of requests that come at once: seconds to each one's first token, and until all have ended."""
  began = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
    asked = [pool.submit(first_token, url, prompt, new) for prompt, new in requests]
    seconds = [one.result() for one in asked]
  return {"first_token": bench.spread(seconds), "all": time.perf_counter() - began}


def second_turns(url: str, others: int, samples: int = 8) -> dict:
  """A turn of 24 tokens after 512 of question and 32 of answer, beside the same after others.

  others: requests that are decoded meanwhile.
  """
  rng, stop = np.random.default_rng(others), threading.Event()
  random_ids = lambda count: rng.integers(0, 50257, count).tolist()

  def keep_busy(prompt: list[int]) -> None:
    while not stop.is_set():
      complete(url, prompt, 128)

  threads = [threading.Thread(target=keep_busy, args=(random_ids(128),)) for _ in range(others)]
  for thread in threads:
    thread.start()
  seconds: dict[str, list[float]] = {"all is new": [], "first turn kept": []}
  for _ in range(samples):
    first, answer, more = random_ids(512), [262] * 32, random_ids(24)
    seconds["all is new"].append(first_token(url, [*first, *answer, *more], 4))
    said = httpx.post(
      f"{url}/v1/completions", timeout=600,
      json=body_of(first[::-1], 32) | {"logit_bias": {"262": 100}},  # so that it is this answer
    )  # fmt: skip
    said.raise_for_status()
    seconds["first turn kept"].append(first_token(url, [*first[::-1], *answer, *more], 4))
  stop.set()
  for thread in threads:
    thread.join()
  return {name: bench.spread(times) for name, times in seconds.items()}


if __name__ == "__main__":
  main()
