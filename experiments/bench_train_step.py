"""A training step (forward, backward, clipping, AdamW), ours beside transformers' and PyTorch's.

  python experiments/bench_train_step.py                       (125M, float32, on a CPU)
  python experiments/bench_train_step.py --model neo_1p3b --dtype bfloat16 --shapes 8x2048   (GPU)

On a CPU both sides alternate in one process. On an accelerator, whose memory they cannot share,
each has its own, and the peer takes half the rows, and half of these, until its step fits: its
seconds are those of all rows in parts. The fraction of a matrix product's speed measured between
the steps counts the exact FLOPs (causal and windowed attention); `full_square` T keys for every
query, as most published figures do. MFU is of the data sheet's peak. Peak memory is that of a
process of its own. Expected on 2 CPU cores: at least 1.5 times the peer's speed at 1x2048, at least
the peer's at 4x512, no more memory.
"""

import argparse
import functools

import bench
import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import hardware, sharding, state, steps
from gptneo_jax.config import PRESETS
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.training import optimizer
from gptneo_jax.training.tasks.lm import next_token_loss


def ours(config, ids_BxT):
  mesh = sharding.make_mesh()
  model = Decoder(config)
  rule, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.1),
    optimizer.ScheduleConfig(name="constant", warmup_steps=0, decay_steps=1),
  )
  abstract = state.abstract_state(model, rule, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  step = steps.make_train_step(next_token_loss(model, 0.0), rule, shardings, mesh)
  targets_BxT = np.roll(ids_BxT, -1, axis=1)
  batch = steps.place_batch({"inputs": ids_BxT, "targets": targets_BxT}, mesh, len(ids_BxT))
  current = state.init_state(model, rule, mesh, seed=0)

  def call():
    nonlocal current
    current, metrics = step(current, batch)
    return float(metrics["loss"])

  return call


def theirs(config, ids_BxT):
  import peer

  return peer.train_step(config, ids_BxT)


SIDES = {"ours": ours, "transformers": theirs}


def two_steps(side: str, config, ids_BxT) -> None:
  """What the memory is measured of."""
  call = SIDES[side](config, ids_BxT)
  call()
  call()


def together(config, ids_BxT, rounds: int) -> dict:
  """Both sides in alternating rounds of one process."""
  memory = {side: bench.peak_memory(two_steps, side, config, ids_BxT) for side in SIDES}
  ceiling = bench.matmul_ceiling(dtype=config.dtype)
  functions = {side: make(config, ids_BxT) for side, make in SIDES.items()}
  times = bench.alternate({**functions, "ceiling": ceiling}, rounds)
  times["transformers' ceiling"] = times["ceiling"]
  return {"seconds": times, "peak_MiB": memory, "ceiling_FLOPs": ceiling.work}


def one_after_the_other(config, ids_BxT, rounds: int) -> dict:
  """Each side with the accelerator to itself."""
  result = bench.apart(alone, "ours", config, ids_BxT, rounds)
  peer = bench.apart(alone, "transformers", config, ids_BxT, rounds)
  parts = len(ids_BxT) / peer["rows"]
  seconds = [parts * s for s in peer["seconds"]["transformers"]["rounds"]]
  result["seconds"] |= {
    "transformers": {**bench.spread(seconds), "rounds": seconds},
    "transformers' ceiling": peer["seconds"]["ceiling"],
  }
  result["peak_MiB"] |= peer["peak_MiB"]
  return {**result, "transformers_rows": peer["rows"]}


def alone(side: str, config, ids_BxT, rounds: int) -> dict:
  """One side, and the rows that it took at once."""
  call = SIDES[side](config, ids_BxT)
  call()
  call()
  memory = {"device": bench.device_peak_mib()}
  ceiling = bench.matmul_ceiling(8192, config.dtype, "jax" if side == "ours" else "torch")
  times = bench.alternate({side: call, "ceiling": ceiling}, rounds)
  return {
    "seconds": times,
    "peak_MiB": {side: memory},
    "ceiling_FLOPs": ceiling.work,
    "rows": getattr(call, "rows", len(ids_BxT)),
  }


def panels(results):
  seconds = bench.by_shape(results, "seconds", SIDES)
  peaks = {  # of the accelerator, where it says its own
    side: {shape: peak.get("device", peak.get("peak")) for shape, peak in row.items()}
    for side, row in bench.by_shape(results, "peak_MiB", SIDES).items()
  }
  title = "training step, {model}, {dtype}".format(**results)
  return [
    bench.Panel(title, "seconds", seconds, "sequences x tokens"),
    bench.Panel("peak memory", "MiB", peaks, "sequences x tokens"),
  ]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="neo_125m", choices=sorted(PRESETS))
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--shapes", nargs="+", default=["1x2048", "4x512"], metavar="BxT")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  config = PRESETS[args.model].replace(dtype=args.dtype, remat=args.remat, initializer="hf")
  device = jax.devices()[0]
  measure = together if device.platform == "cpu" else one_after_the_other
  results = {}
  for shape in args.shapes:
    B, T = map(int, shape.split("x"))
    ids_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (B, T), np.int32)
    measured = measure(config, ids_BxT, args.rounds)
    times = measured["seconds"]
    flops = {
      kind: config.flops_per_token(T, attention=kind) * B * T for kind in ("exact", "full_square")
    }
    fraction = functools.partial(bench.fraction, times, ceiling_work=measured["ceiling_FLOPs"])
    results[shape] = {
      **measured,
      "speedup": bench.ratio(times, "transformers", "ours"),
      "fraction_of_ceiling": fraction("ours", flops["exact"]),
      "fraction_full_square": fraction("ours", flops["full_square"]),
      "transformers_fraction": fraction(
        "transformers", flops["exact"], ceiling="transformers' ceiling"
      ),
      "tokens_per_second": {side: B * T / times[side]["median"] for side in SIDES},
    }
    if peak := hardware.peak_flops(device.device_kind, jnp.dtype(config.dtype).itemsize):
      results[shape]["mfu"] = {
        side: {kind: work / times[side]["median"] / peak for kind, work in flops.items()}
        for side in SIDES
      }
  name = "bench_train_step" if args.model == "neo_125m" else f"bench_train_step_{args.model}"
  settings = {"model": args.model, "dtype": args.dtype, "remat": args.remat}
  bench.record(name, {**settings, **results}, panels)


if __name__ == "__main__":
  main()
