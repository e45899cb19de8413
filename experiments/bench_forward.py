"""The forward pass to logits, ours beside transformers' eager GPT-Neo, in alternating rounds.

  python experiments/bench_forward.py                          (125M, float32, on a CPU)
  python experiments/bench_forward.py --model neo_1p3b --dtype bfloat16 --shapes 8x2048   (on a GPU)

Expected on 2 CPU cores: at least 1.8 times the peer's speed at 1x2048, 1.1 times at 4x512.
"""

import argparse
import functools

import bench
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peer

from gptneo_jax.config import PRESETS
from gptneo_jax.model.decoder import Decoder


def ours(config, ids_BxT):
  model = Decoder(config)
  init = jax.jit(lambda key: nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))))
  logits = jax.jit(functools.partial(model.apply, method="logits"))
  return functools.partial(logits, init(jax.random.key(0)), ids_BxT)


def panels(results):
  seconds = bench.by_shape(results, "seconds", ("ours", "transformers"))
  title = "forward pass, {model}, {dtype}".format(**results)
  return [bench.Panel(title, "seconds", seconds, "sequences x tokens")]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="neo_125m", choices=sorted(PRESETS))
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--shapes", nargs="+", default=["1x2048", "4x512"], metavar="BxT")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  config = PRESETS[args.model].replace(dtype=args.dtype, param_dtype=args.dtype, initializer="hf")
  results = {}
  for shape in args.shapes:
    B, T = map(int, shape.split("x"))
    ids_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (B, T), np.int32)
    ceiling = bench.matmul_ceiling(dtype=args.dtype)
    functions = {"ours": ours(config, ids_BxT), "transformers": peer.forward(config, ids_BxT)}
    times = bench.alternate({**functions, "ceiling": ceiling}, args.rounds)
    flops = config.flops_per_token(T) / 3 * B * T
    results[shape] = {
      "seconds": times,
      "speedup": bench.ratio(times, "transformers", "ours"),
      "fraction_of_ceiling": bench.fraction(times, "ours", flops, ceiling.work),
    }
  name = "bench_forward" if args.model == "neo_125m" else f"bench_forward_{args.model}"
  bench.record(name, {"model": args.model, "dtype": args.dtype, **results}, panels)


if __name__ == "__main__":
  main()
