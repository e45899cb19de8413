"""Plots runs over each other: loss, bits per byte of the validation documents, and of each subset.

python experiments/plot_run.py runs/tiny experiments/001_tiny/plot.png
python experiments/plot_run.py runs/a runs/b both.png
"""

import argparse
import json
import pathlib

from gptneo_jax.evals import pictures

SUBSET = "eval/bits_per_byte/"


def read(workdir: pathlib.Path) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def points(lines: list[dict], key: str) -> tuple[list, list]:
  pairs = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
  return [step for step, _ in pairs], [value for _, value in pairs]


def draw_loss(axis, runs: dict[str, list[dict]]) -> None:
  """Raw values pale below their running mean; validation as points."""
  for colour, (name, lines) in zip(pictures.COLOURS, runs.items()):
    steps, losses = points(lines, "train/loss")
    axis.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    label = f"{name}, training"
    axis.plot(steps, pictures.smoothed(losses, len(losses) // 20), color=colour, label=label)
    axis.plot(*points(lines, "eval/loss"), "o", color=colour, label=f"{name}, validation")
  axis.set(title="loss (training: running mean)", xlabel="step", ylabel="nats per token")


def draw_bits(axis, runs: dict[str, list[dict]]) -> None:
  for colour, (name, lines) in zip(pictures.COLOURS, runs.items()):
    steps, bits = points(lines, "eval/bits_per_byte")
    axis.plot(steps, bits, "o-", color=colour, label=name if len(runs) > 1 else "")
    for step, value in zip(steps, bits):
      axis.annotate(f"{value:.3f}", (step, value), (4, 4), textcoords="offset points", fontsize=7)
  axis.set(title="validation", xlabel="step", ylabel="bits per byte")
  axis.margins(x=0.12, y=0.12)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdirs", type=pathlib.Path, nargs="+", help="of runs, with metrics.jsonl")
  parser.add_argument("image", type=pathlib.Path, help="file to write, .png or .svg")
  args = parser.parse_args()
  names = [path.name for path in args.workdirs]
  if len(set(names)) < len(names):
    names = [str(path) for path in args.workdirs]
  runs = dict(zip(names, map(read, args.workdirs)))
  subsets = {}
  for name, lines in runs.items():
    evaluated = [line for line in lines if any(key.startswith(SUBSET) for key in line)]
    if evaluated:
      last = {k.removeprefix(SUBSET): v for k, v in evaluated[-1].items() if k.startswith(SUBSET)}
      subsets[name] = last
  bars = sum(map(len, subsets.values()))
  height = max(4.2, 0.25 * bars + 1.5)
  with pictures.drawing(args.image, 3 if subsets else 2, height=height) as axes:
    draw_loss(axes[0], runs)
    draw_bits(axes[1], runs)
    if subsets:
      pictures.bars(axes[2], subsets, horizontal=True)
      axes[2].set(title="validation, by subset, at the end", xlabel="bits per byte")
    for axis in axes:
      pictures.legend(axis)


if __name__ == "__main__":
  main()
