"""Blocked local attention against the O(T²) reference: time and compiled memory over T.

  python experiments/bench_local_attention.py

Forward and backward, B = 1, 4 heads of 64, window 256, T = 512 to 8192. The cost of
the blocks is linear in T: their time per token is to stay the same.
"""

import functools

import bench
import jax
import jax.numpy as jnp

from gptneo_jax.attention import BACKENDS, MaskSpec

LENGTHS = (512, 1024, 2048, 4096, 8192)


def main():
  rows = []
  for T in LENGTHS:
    q, k, v = jax.random.normal(jax.random.key(T), (3, 1, T, 4, 64)) * 0.3

    def gradient(name, q=q, k=k, v=v):
      def loss(q, k, v):
        return jnp.sin(BACKENDS[name](q, k, v, MaskSpec(256), 1.0)).sum()

      compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
      return functools.partial(compiled, q, k, v), compiled.memory_analysis().temp_size_in_bytes

    functions = {name: gradient(name) for name in ("local", "reference")}
    times = bench.alternate({name: call for name, (call, _) in functions.items()}, rounds=3)
    rows.append(
      {
        "T": T,
        "seconds": times,
        "microseconds_per_token": times["local"]["median"] / T * 1e6,
        "speedup": bench.ratio(times, "reference", "local"),
        "temporary_MiB": {name: size / 2**20 for name, (_, size) in functions.items()},
      }
    )

  def over_T(key):
    return {name: {row["T"]: row[key][name] for row in rows} for name in ("local", "reference")}

  bench.record(
    "bench_local_attention",
    {"rows": rows},
    [
      bench.Panel("forward and backward", "seconds", over_T("seconds"), "T", log=True),
      bench.Panel("temporary memory", "MiB", over_T("temporary_MiB"), "T", log=True),
    ],
  )


if __name__ == "__main__":
  main()
