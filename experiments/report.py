"""Makes the archive of experiments from the runs: each folder's README.md and plot, and the table.

  python -m experiments.report

An experiment is a folder with an arms.json: question, prediction (written before the runs that it
is about), whether that held ('held', 'in part', 'failed'), arms, verdict. The table goes between
the marks in experiments/README.md.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from experiments import ablations
from gptneo_jax.evals import pictures

HERE = pathlib.Path(__file__).parent


class Arm(NamedTuple):
  """What the runs of an arm say, against the baseline's."""

  name: str
  runs: list[dict[str, Any]]
  mean: float
  difference: float  # from the baseline's runs of the same seeds, the mean
  seems: str  # 'better', 'worse', 'not told apart', or '' for the baseline and for a single seed


def experiments() -> list[pathlib.Path]:
  """The folders, in the order of their numbers."""
  return sorted(path.parent for path in HERE.glob("*/arms.json"))


def read(folder: pathlib.Path) -> dict[str, Any]:
  """What its arms.json says."""
  return json.loads((folder / "arms.json").read_text(encoding="utf-8"))


def arms_of(experiment: dict[str, Any], runs: list[dict[str, Any]]) -> list[Arm]:
  """The arms that have runs, in the order of the file."""
  found = {
    name: ablations.runs_of(runs, ablations.settings_of(experiment, name))
    for name in experiment["arms"]
  }
  found = {name: rows for name, rows in found.items() if rows}
  base = {run["seed"]: run["bits_per_byte"] for run in found[experiment["baseline"]]}
  differences = {
    name: [run["bits_per_byte"] - base[run["seed"]] for run in rows if run["seed"] in base]
    for name, rows in found.items()
    if name != experiment["baseline"]
  }
  sigma = pooled_deviation(list(differences.values()))
  arms = []
  for name, rows in found.items():
    mean = statistics.mean(run["bits_per_byte"] for run in rows)
    row = differences.get(name, [0.0])
    seems = judge(statistics.mean(row), len(row), sigma) if len(row) > 1 else ""
    arms.append(Arm(name, rows, mean, statistics.mean(row), seems))
  return arms


def pooled_deviation(samples: list[list[float]]) -> float:
  """Standard deviation over seeds of what each sample is of, the same in all samples."""
  freedom = sum(len(row) - 1 for row in samples)
  squares = sum((x - statistics.mean(row)) ** 2 for row in samples for x in row)
  return math.sqrt(squares / freedom) if freedom else math.inf


def judge(difference: float, n: int, sigma: float) -> str:
  """A mean difference over n seeds counts from three standard errors on: |difference| · sqrt(n) >=
  3 sigma. modded-nanogpt's track 3 has sqrt(n / 2) and the deviation of single runs; a seed here
  gives both arms the same rows in the same order, and their difference varies far less."""
  if abs(difference) * math.sqrt(n) < 3 * sigma:
    return "not told apart"
  return "better" if difference < 0 else "worse"


def page(folder: pathlib.Path, experiment: dict[str, Any], arms: list[Arm]) -> str:
  """The folder's README.md."""
  lines = [
    f"# {folder.name[:3]}: {experiment['title']}",
    "",
    f"**Question.** {experiment['question']}",
    "",
    f"**Prediction** ({experiment['prediction_held']}). {experiment['prediction']}",
    "",
    "```bash",
    f"python experiments/ablations.py experiments/{folder.name}",
    "```",
    "",
    f"`{experiment['config']}` with {_settings(experiment.get('settings', {}))}.",
    "",
    "| arm | settings | seeds | bits per byte, mean (lowest to highest) | beside the baseline | |",
    "|---|---|---:|---|---:|---|",
  ]
  for arm in arms:
    values = [row["bits_per_byte"] for row in arm.runs]
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    beside = "" if arm.name == experiment["baseline"] else f"{arm.difference:+.4f}"
    settings = _settings(experiment["arms"][arm.name]) or "these"
    lines.append(
      f"| {arm.name} | {settings} | {len(values)} | {arm.mean:.4f}{spread} | {beside} |"
      f" {arm.seems} |"
    )
  lines += [
    "",
    "![validation curves](plot.png)",
    "",
    f"**Verdict.** {experiment['verdict']}",
    "",
  ]
  return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
  return ", ".join(f"`{name}={json.dumps(value)}`" for name, value in settings.items())


def table(rows: list[tuple[pathlib.Path, dict[str, Any], list[Arm]]]) -> str:
  """The archive's table."""
  lines = [
    "| experiment | question | arms, seeds | best arm beside the baseline | prediction | verdict |",
    "|---|---|---|---|---|---|",
  ]
  for folder, experiment, arms in rows:
    others = [arm for arm in arms if arm.name != experiment["baseline"]]
    best = min(others, key=lambda arm: arm.mean)
    seeds = max(len(arm.runs) for arm in arms)
    cells = (
      f"[{folder.name}]({folder.name}/README.md)",
      experiment["question"],
      f"{len(arms)}, {seeds}",
      f"{best.name}: {best.difference:+.4f}, {best.seems or 'one seed'}",
      experiment["prediction_held"],
      experiment["verdict"].partition(". ")[0].removesuffix("."),
    )
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def with_table(text: str, made: str, mark: str = "archive") -> str:
  """A page with the table between its marks."""
  begin, end = (f"<!-- {mark}: {place} -->\n" for place in ("begin", "end"))
  before, _, rest = text.partition(begin)
  return before + begin + made + end + rest.partition(end)[2]


def draw(folder: pathlib.Path, arms: list[Arm]) -> None:
  """Validation over steps, each arm's mean with the band of its seeds; and the last values."""
  with pictures.drawing(folder / "plot.png", 2) as (curves, ends):
    for colour, arm in zip(_colours(len(arms)), arms):
      steps = [step for step, _ in arm.runs[0]["curve"]]
      values = [[value for _, value in run["curve"]] for run in arm.runs]
      means = [statistics.mean(column) for column in zip(*values)]
      curves.plot(steps, means, color=colour, marker="o", markersize=3, label=arm.name)
      curves.fill_between(
        steps, [min(c) for c in zip(*values)], [max(c) for c in zip(*values)], color=colour,
        alpha=0.2,
      )  # fmt: skip
    for place, (colour, arm) in enumerate(zip(_colours(len(arms)), arms)):
      finals = [run["bits_per_byte"] for run in arm.runs]
      ends.plot(finals, [place] * len(finals), "o", color=colour, alpha=0.6)
      ends.plot([arm.mean], [place], "|", color=colour, markersize=16)
    ends.set_yticks(range(len(arms)), [arm.name for arm in arms])
    ends.invert_yaxis()
    ends.set(title="at the end, each seed", xlabel="bits per byte")
    curves.set(title="validation", xlabel="step", ylabel="bits per byte")
    pictures.legend(curves)


def _colours(count: int) -> list[str]:
  return [pictures.COLOURS[i % len(pictures.COLOURS)] for i in range(count)]


def main() -> None:
  runs, rows = ablations.recorded(), []
  for folder in experiments():
    experiment = read(folder)
    arms = arms_of(experiment, runs)
    (folder / "README.md").write_text(page(folder, experiment, arms), encoding="utf-8")
    draw(folder, arms)
    rows.append((folder, experiment, arms))
  readme = HERE / "README.md"
  readme.write_text(with_table(readme.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
  print(table(rows), end="")


if __name__ == "__main__":
  main()
