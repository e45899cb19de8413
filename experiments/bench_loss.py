"""The loss over the vocabulary and its gradients: in chunks, beside one that holds all logits.

  python experiments/bench_loss.py                       (125M: width 768, 50257 ids)

Expected: compiled memory lower by at least 80% of the float32 logits, in no more time.
"""

import argparse
import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax.model.chunked_cross_entropy import loss_sums
from gptneo_jax.model.losses import token_losses


def in_chunks(x_BxTxD, table_VxD, targets_BxT, weights_BxT, V):
  return loss_sums(x_BxTxD, table_VxD, targets_BxT, weights_BxT, V, 1e-4).objective


def at_once(x_BxTxD, table_VxD, targets_BxT, weights_BxT, V):
  logits_BxTxV = jnp.einsum(
    "BTD,VD->BTV", x_BxTxD, table_VxD.astype(x_BxTxD.dtype), preferred_element_type=jnp.float32
  )
  losses = token_losses(logits_BxTxV, targets_BxT, weights_BxT)
  return losses.nll_BxT.sum() + 1e-4 * losses.z_BxT.sum()


def panels(results):
  sides, x = ("in chunks", "at once"), "sequences x tokens"
  seconds = bench.by_shape(results, "seconds", sides)
  memory = bench.by_shape(results, "temporary_MiB", sides)
  return [
    bench.Panel("loss and its gradients", "seconds", seconds, x),
    bench.Panel("temporary memory", "MiB", memory, x),
  ]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--shapes", nargs="+", default=["4x512", "4x2048"], metavar="BxT")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  V, D, results = 50257, args.width, {}
  for shape in args.shapes:
    B, T = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    inputs = (
      jnp.asarray(rng.standard_normal((B, T, D)), args.dtype),
      jnp.asarray(0.02 * rng.standard_normal((V, D)), jnp.float32),
      jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
      jnp.full((B, T), 1 / (B * T), jnp.float32),
    )
    made = {}
    for name, function in {"in chunks": in_chunks, "at once": at_once}.items():
      gradient = jax.grad(functools.partial(function, V=V), argnums=(0, 1))
      made[name] = jax.jit(gradient).lower(*inputs).compile()
    calls = {name: functools.partial(call, *inputs) for name, call in made.items()}
    values = [[np.asarray(g, np.float64) for g in call()] for call in calls.values()]
    ceiling = bench.matmul_ceiling(dtype=args.dtype)
    times = bench.alternate({**calls, "ceiling": ceiling}, args.rounds)
    size = {name: call.memory_analysis().temp_size_in_bytes for name, call in made.items()}
    results[shape] = {
      "seconds": times,
      "speedup": bench.ratio(times, "at once", "in chunks"),
      "fraction_of_ceiling": bench.fraction(times, "in chunks", 6 * B * T * V * D, ceiling.work),
      "temporary_MiB": {name: bytes_ / 2**20 for name, bytes_ in size.items()},
      "saved_part_of_logits": (size["at once"] - size["in chunks"]) / (4 * B * T * V),
      "relative_difference_of_gradients": [
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*values)
      ],
    }
  bench.record("bench_loss", {"width": D, "dtype": args.dtype, **results}, panels)


if __name__ == "__main__":
  main()
