"""Generation beside transformers' on the same machine: tokens per second, prompt, first token.

  python experiments/bench_decode.py [--rounds 3] [--new_tokens 64] [--parts decode prefill first]
  python experiments/bench_decode.py --dtype bfloat16                                  (on a GPU)

GPT-Neo 125M with random weights, the same in both; greedy, prompt of 128 tokens. Rounds of
both alternate in one process with products of a matrix as large as the model and a vector, the
fastest of which is the bandwidth ceiling: a token of one row reads every weight once. `decode` has
batches of 1 and 8, `prefill` a prompt of 2048 tokens, `first` the time to the first token of a new
process, with nothing compiled and with JAX_COMPILATION_CACHE_DIR warm.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import bench
import jax
import jax.numpy as jnp
import numpy as np

import gptneo_jax
from gptneo_jax.generation import decode

PROMPT = 128
CEILING_REPEATS = 5


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--new_tokens", type=int, default=64)
  parser.add_argument("--parts", nargs="+", default=["decode", "prefill", "first"])
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    theirs = make_model(folder, args.dtype)
    lm = gptneo_jax.load(folder, dtype=args.dtype)
    results = {}
    if "decode" in args.parts:
      for batch in (1, 8):
        results[f"decode, batch {batch}"] = decoding(lm, theirs, batch, args)
    if "prefill" in args.parts:
      results["prompt of 2048 tokens"] = reading(lm, theirs, args.rounds)
    if "first" in args.parts:
      results["seconds to the first token"] = first_token(folder)
  bench.record("bench_decode", {"dtype": args.dtype, **results})


def make_model(folder: str, dtype: str):
  """Their model, and its folder for us."""
  import peer
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.GPTNeoConfig(
    hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]],
    attn_implementation="eager",
  )  # fmt: skip
  model = transformers.GPTNeoForCausalLM(config).eval()
  model.save_pretrained(folder)
  model.generation_config.eos_token_id = None
  return model.to(peer.DEVICE, getattr(torch, dtype))


def prompts(batch: int, length: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 50257, (batch, length))


def ceiling(size: int, dtype: str):
  """Reads `size` weights once."""
  matrix_VxD = jnp.ones((size // 768, 768), dtype)
  vector_Dx1 = jnp.ones((768, 1), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: [product(matrix_VxD, vector_Dx1) for _ in range(CEILING_REPEATS)][-1]


def decoding(lm, theirs, batch: int, args) -> dict:
  """New tokens per second: the time of a long continuation less that of one of 1 token."""
  import torch

  ids, N = prompts(batch, PROMPT), args.new_tokens
  size = lm.config.num_params() - lm.config.max_position_embeddings * 768
  weights = size * jnp.dtype(args.dtype).itemsize

  def ours(n):
    return lambda: lm.generate(ids, max_new_tokens=n, eos_token_id=-1)

  def reference(n):
    tensor = torch.tensor(ids, device=theirs.device)
    mask = torch.ones_like(tensor)
    return lambda: (
      theirs.generate(
        tensor, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0
      )
      .cpu()
      .numpy()
    )

  same = np.asarray(ours(N)().sequences) == reference(N)()
  functions = {
    "ours": ours(N), "transformers": reference(N), "ours, 1 token": ours(1),
    "transformers, 1 token": reference(1), "ceiling": ceiling(size, args.dtype),
  }  # fmt: skip
  rows = bench.alternate(functions, args.rounds)
  times = {name: row["median"] for name, row in rows.items()}
  times["ceiling"] = rows["ceiling"]["min"] / CEILING_REPEATS  # the best that the machine has shown
  speed = {
    name: batch * (N - 1) / (times[name] - times[f"{name}, 1 token"])
    for name in ("ours", "transformers")
  }
  bandwidth = weights / times["ceiling"]
  return {
    "tokens_per_second": speed,
    "ratio": speed["ours"] / speed["transformers"],
    "ratio_with_prompt": times["transformers"] / times["ours"],
    "ceiling_GB_per_second": bandwidth / 1e9,
    "share_of_ceiling": speed["ours"] / batch * weights / bandwidth,
    "same_tokens": float(same.mean()),
    "seconds": times,
  }


def reading(lm, theirs, rounds: int) -> dict:
  """A prompt of 2048 tokens into the cache."""
  import torch

  ids = prompts(1, 2048)
  tensor, left_pad_B = torch.tensor(ids, device=theirs.device), np.zeros(1, np.int32)

  def reference():
    with torch.no_grad():
      return theirs(tensor, use_cache=True, logits_to_keep=1).logits.float().cpu().numpy()

  functions = {
    "ours": lambda: decode.prefill(lm.config, lm.unstacked_params, ids, left_pad_B, 2048),
    "transformers": reference,
  }
  times = {name: row["median"] for name, row in bench.alternate(functions, rounds).items()}
  return {"seconds": times, "ratio": times["transformers"] / times["ours"]}


def first_token(folder: str) -> dict:
  """A process of its own: load, then one token; twice with one cache of compiled functions."""
  code = f"""
import time, numpy as np, gptneo_jax
lm = gptneo_jax.load({folder!r}); lm.unstacked_params["wte"].block_until_ready()
ids = np.random.default_rng(0).integers(0, 50257, (1, {PROMPT}))
start = time.perf_counter(); lm.generate(ids, max_new_tokens=1, eos_token_id=-1)
cold = time.perf_counter() - start
start = time.perf_counter(); lm.generate(ids, max_new_tokens=1, eos_token_id=-1)
print(cold, time.perf_counter() - start)
"""
  with tempfile.TemporaryDirectory() as cache:
    environment = {
      **os.environ, "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    times = [
      subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
      ).stdout.split()
      for _ in range(2)
    ]
  return {
    "nothing compiled": float(times[0][0]),
    "compilation cache": float(times[1][0]),
    "compiled": float(times[1][1]),
  }


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  start = time.perf_counter()
  main()
  print(f"{time.perf_counter() - start:.0f} s in all")
