"""Plots a run: training loss, and bits per byte of the validation documents.

python experiments/plot_run.py runs/tiny experiments/001_tiny/plot.png
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=pathlib.Path, help="folder of a run, with metrics.jsonl")
  parser.add_argument("image", type=pathlib.Path, help="file to write, .png or .svg")
  args = parser.parse_args()
  lines = [json.loads(line) for line in (args.workdir / "metrics.jsonl").open()]

  def points(key):
    pairs = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return list(zip(*pairs)) or [(), ()]

  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
  left.plot(*points("train/loss"), label="training", linewidth=0.8)
  left.plot(*points("eval/loss"), "o-", label="validation")
  left.set(xlabel="step", ylabel="loss, nats per token")
  left.legend()
  right.plot(*points("eval/bits_per_byte"), "o-")
  right.set(xlabel="step", ylabel="validation bits per byte")
  figure.savefig(args.image, dpi=120)


if __name__ == "__main__":
  main()
