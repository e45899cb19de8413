"""Attention alone over T: the blocks that XLA computes, beside the O(T²) reference.

  python experiments/bench_attention.py
  python experiments/bench_attention.py --impl auto --dtype bfloat16 --heads 16 --head_dim 128
                                                                                     (on a GPU)

Forward and backward, GPT-Neo's window of 256 and global. Expected: a windowed layer's time
and compiled memory linear in T, and at least 8 times the reference's speed at T = 8192; a global
layer's memory linear in T too.
"""

import argparse
import functools

import bench
import jax
import jax.numpy as jnp

from gptneo_jax.attention import MaskSpec, attend

LENGTHS = (1024, 2048, 4096, 8192, 16384)
REFERENCE_UP_TO = 8192  # its scores at 16384 tokens do not fit in a laptop's memory


def gradient(impl, window, inputs):
  """A compiled call, and the bytes it needs beside its arguments and results."""

  def loss(q, k, v):
    return jnp.sin(attend(q, k, v, MaskSpec(window), scale=1.0, impl=impl)).sum()

  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile()
  return functools.partial(compiled, *inputs), compiled.memory_analysis().temp_size_in_bytes


def panels(results):
  rows = results["rows"]

  def over_T(key):
    names = dict.fromkeys(name for row in rows for name in row[key])
    return {n: {row["T"]: row[key][n] for row in rows if n in row[key]} for n in names}

  what = "one layer, {batch} x T, {heads} heads of {head_dim}, {dtype}".format(**results)
  return [
    bench.Panel(f"{title}\n{what}", unit, over_T(key), "T, tokens", log=True)
    for title, unit, key in (
      ("forward and backward", "seconds", "seconds"),
      ("temporary memory", "MiB", "temporary_MiB"),
    )
  ]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--impl", default="xla", help="auto: what the hardware's models would take")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--head_dim", type=int, default=64)
  parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  rows = []
  for T in args.lengths:
    shape = (3, args.batch, T, args.heads, args.head_dim)
    inputs = 0.3 * jax.random.normal(jax.random.key(T), shape, args.dtype)
    made = {"local": gradient(args.impl, 256, inputs), "global": gradient(args.impl, None, inputs)}
    if T <= REFERENCE_UP_TO:
      made["reference"] = gradient("reference", 256, inputs)
    times = bench.alternate({name: call for name, (call, _) in made.items()}, args.rounds)
    row = {
      "T": T,
      "seconds": times,
      "local_microseconds_per_token": times["local"]["median"] / (args.batch * T) * 1e6,
      "global_beside_local": bench.ratio(times, "global", "local"),
      "temporary_MiB": {name: size / 2**20 for name, (_, size) in made.items()},
    }
    if "reference" in made:
      row["speedup_local"] = bench.ratio(times, "reference", "local")
      row["speedup_global"] = bench.ratio(times, "reference", "global")
    rows.append(row)

  bench.record("bench_attention", {**vars(args), "rows": rows}, panels)


if __name__ == "__main__":
  main()
