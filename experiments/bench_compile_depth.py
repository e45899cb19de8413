"""Time to compile the training step against depth: the scan over periods keeps it constant.

python experiments/bench_compile_depth.py [--rounds 3]
"""

import argparse
import statistics
import time

import bench
import jax
import jax.numpy as jnp

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.state import abstract_state
from gptneo_jax.steps import make_train_step
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from gptneo_jax.training.tasks.lm import next_token_loss


def compile_seconds(num_layers: int) -> float:
  config = ModelConfig(
    vocab_size=1024, max_position_embeddings=512, hidden_size=128, num_heads=2,
    num_layers=num_layers, window_size=256,
  )  # fmt: skip
  model, mesh = Decoder(config), sharding.make_mesh()
  optimizer, _ = make_optimizer(OptimizerConfig(), ScheduleConfig(decay_steps=10_000))
  abstract = abstract_state(model, optimizer, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  batch = dict.fromkeys(("inputs", "targets"), jax.ShapeDtypeStruct((2, 512), jnp.int32))
  step = make_train_step(next_token_loss(model, 1e-4), optimizer, shardings, mesh)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    step.lower(abstract, batch).compile()
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  compile_seconds(2)  # the first compilation of a process carries its start-up
  rounds = [{depth: compile_seconds(depth) for depth in (4, 8, 16, 32)} for _ in range(args.rounds)]
  seconds = {depth: statistics.median(row[depth] for row in rounds) for depth in rounds[0]}
  bench.record(
    "bench_compile_depth", {"seconds": seconds, "ratio_32_to_4": seconds[32] / seconds[4]}
  )


if __name__ == "__main__":
  main()
