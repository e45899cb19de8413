"""A training step by each optimizer, on the models of the ablations and of the quick start.

  python experiments/bench_optimizers.py

What an update costs, for comparing losses at equal time (002_optimizers). The optimizers alternate
in one process, each with its recipe's step as `train` compiles it; the fraction of a matrix
product's speed measured between them counts the exact FLOPs of forward and backward, so that what
Muon multiplies itself counts as lost time.
"""

import argparse

import ablations
import bench
import numpy as np

from gptneo_jax import state, steps
from gptneo_jax.training.compiled_step import compile_step
from gptneo_jax.training.setup import setup_run

CONFIGS = {"small": "experiments/small.py", "tiny": "configs/tiny.py"}
OPTIMIZERS = ("adamw", "mesh_adam", "muon")


def make(config: str, optimizer: str):
  """A step on random tokens, waited for; and the FLOPs of its model."""
  run = setup_run(ablations.config_of({"config": config, "optimizer.name": optimizer}, seed=0))
  step = compile_step(run)
  current = state.init_state(run.module, run.optimizer, run.mesh, 0)
  shapes = run.task.batch_shapes(run)
  draw = np.random.default_rng(0).integers
  batch = {
    name: draw(0, run.model_config.vocab_size, x.shape).astype(x.dtype)
    for name, x in shapes.items()
  }
  batch = steps.place_batch(batch, run.mesh, run.config.batch_size)
  tokens = run.config.batch_size * run.config.seq_len

  def call():
    nonlocal current
    current, metrics = step(current, batch)
    return float(metrics["loss"])

  return call, tokens * run.model_config.flops_per_token(run.config.seq_len)


def measure(config: str, rounds: int) -> dict:
  made = {name: make(config, name) for name in OPTIMIZERS}
  ceiling = bench.matmul_ceiling()
  calls = {name: call for name, (call, _) in made.items()}
  times = bench.alternate({**calls, "ceiling": ceiling}, rounds)
  return {
    "seconds": times,
    "beside_adamw": {
      name: bench.ratio(times, name, "adamw") for name in OPTIMIZERS if name != "adamw"
    },
    "fraction_of_matmul_ceiling": {
      name: bench.fraction(times, name, flops, ceiling.work) for name, (_, flops) in made.items()
    },
  }  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  results = {name: measure(config, args.rounds) for name, config in CONFIGS.items()}
  bench.record("bench_optimizers", results)


if __name__ == "__main__":
  main()
