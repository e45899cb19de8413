"""A training step (forward, backward, clipping, AdamW), ours beside transformers' and PyTorch's.

  python experiments/bench_train_step.py                       (125M, float32, on a CPU)
  python experiments/bench_train_step.py --model neo_1p3b --dtype bfloat16 --shapes 8x2048   (GPU)

Alternating rounds; the fraction of a matrix product's speed measured between them counts the exact
FLOPs (causal and windowed attention), `mfu_full_square` T keys for every query as most published
figures do. Peak memory is that of a process of its own for each. Expected on 2 CPU cores: at least
1.5 times the peer's speed at 1x2048, at least the peer's at 4x512, no more memory.
"""

import argparse

import bench
import jax
import numpy as np

from gptneo_jax import optim, sharding, state, steps
from gptneo_jax.config import PRESETS
from gptneo_jax.model import Decoder


def ours(config, ids_BxT):
  mesh = sharding.make_mesh()
  model = Decoder(config)
  optimizer, _ = optim.make_optimizer(
    optim.OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.1),
    optim.ScheduleConfig(name="constant", warmup_steps=0, decay_steps=1),
  )
  abstract = state.abstract_state(model, optimizer, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = steps.make_train_step(model, optimizer, shardings, mesh, z_loss=0.0)
  targets_BxT = np.roll(ids_BxT, -1, axis=1)
  batch = steps.place_batch({"inputs": ids_BxT, "targets": targets_BxT}, mesh, len(ids_BxT))
  current = state.init_state(model, optimizer, mesh, seed=0)

  def call():
    nonlocal current
    current, metrics = step(current, batch)
    return float(metrics["loss"])

  return call


def theirs(config, ids_BxT):
  import peer

  return peer.train_step(config, ids_BxT)


def two_steps(side: str, config, ids_BxT) -> None:
  """What the memory is measured of."""
  call = {"ours": ours, "transformers": theirs}[side](config, ids_BxT)
  call()
  call()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="neo_125m", choices=sorted(PRESETS))
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--shapes", nargs="+", default=["1x2048", "4x512"], metavar="BxT")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  config = PRESETS[args.model].replace(dtype=args.dtype, remat=args.remat, initializer="hf")
  both = {"ours": ours, "transformers": theirs}
  results = {}
  for shape in args.shapes:
    B, T = map(int, shape.split("x"))
    ids_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (B, T), np.int32)
    memory = {side: bench.peak_memory(two_steps, side, config, ids_BxT) for side in both}
    ceiling = bench.matmul_ceiling(dtype=args.dtype)
    functions = {side: make(config, ids_BxT) for side, make in both.items()}
    times = bench.alternate({**functions, "ceiling": ceiling}, args.rounds)
    exact, square = (
      config.flops_per_token(T, attention=kind) * B * T for kind in ("exact", "full_square")
    )
    results[shape] = {
      "seconds": times,
      "speedup": bench.ratio(times, "transformers", "ours"),
      "fraction_of_ceiling": bench.fraction(times, "ours", exact, ceiling),
      "mfu_full_square": bench.fraction(times, "ours", square, ceiling),
      "transformers_fraction": bench.fraction(times, "transformers", exact, ceiling),
      "tokens_per_second": {side: B * T / times[side]["median"] for side in both},
      "peak_MiB": memory,
    }
  name = "bench_train_step" if args.model == "neo_125m" else f"bench_train_step_{args.model}"
  seconds = {n: {shape: r["seconds"][n] for shape, r in results.items()} for n in both}
  peaks = {n: {shape: r["peak_MiB"][n]["peak"] for shape, r in results.items()} for n in both}
  bench.record(
    name,
    {"model": args.model, "dtype": args.dtype, "remat": args.remat, **results},
    [
      bench.Panel(f"training step, {args.model}", "seconds", seconds),
      bench.Panel("peak memory of the process", "MiB", peaks),
    ],
  )


if __name__ == "__main__":
  main()
