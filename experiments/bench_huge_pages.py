"""A training step on a CPU with malloc's memory in huge pages, beside pages of 4 KiB.

  python experiments/bench_huge_pages.py

XLA takes the memory of a step from malloc each time and gives it back, so that Linux zeroes every
page anew. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc 2.35; transparent huge pages 'madvise'
or 'always') there are 512 times fewer of them. Each sample is a process of its own, since the
setting is read when it starts; the two alternate. The model has 9 million parameters, and a step
takes 8 examples of up to 256 tokens.
"""

import argparse
import os

import bench
import bench_finetune as finetune

from gptneo_jax.config import PRESETS

SIDES = {"huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "pages of 4 KiB": {}}
TOKENS, STEPS = 256, 20


def step_seconds() -> float:
  """Seconds of a step, the mean of STEPS after two that are not counted."""
  config = PRESETS["neo_125m"].replace(
    hidden_size=256, num_layers=8, num_heads=4, vocab_size=8192, initializer="hf"
  )
  examples = finetune.draw_examples("mixed", 8, TOKENS, config.vocab_size)
  call = finetune.ours(config, examples, TOKENS, by_lora=False)
  call(), call()
  return bench.seconds(call, STEPS)


def sample(side: str) -> float:
  os.environ.pop("GLIBC_TUNABLES", None)
  os.environ.update(SIDES[side])
  return bench.apart(step_seconds)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  samples = {side: [] for side in SIDES}
  for number in range(args.rounds):
    for side in list(SIDES)[:: 1 if number % 2 else -1]:
      samples[side].append(sample(side))
  times = {side: {**bench.spread(row), "rounds": row} for side, row in samples.items()}
  speedup = bench.ratio(times, "pages of 4 KiB", "huge pages")
  bench.record("bench_huge_pages", {"seconds": times, "speedup": speedup})


if __name__ == "__main__":
  main()
