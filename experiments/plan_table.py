"""The tables of docs/memory.md: model size by chip, each cell from the planner.

  python experiments/plan_table.py            fills in what plan_table.json lacks, then the page
  python experiments/plan_table.py --again    all cells anew

Needs TPU's compiler, no TPU: pip install -e '.[tpu]'. A cell is the config as it is, and where
that does not fit the first settings that the planner advises; each compilation takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys

from gptneo_jax import hardware
from gptneo_jax.config import PRESETS
from gptneo_jax.training import memory_estimate

HERE = pathlib.Path(__file__).resolve().parent
CELLS, PAGE = HERE / "plan_table.json", HERE.parent / "docs" / "memory.md"
MODELS = ("neo_125m", "neo_350m", "neo_1p3b", "neo_2p7b")
TOPOLOGIES = ("v5e:1x1", "v6e:1x1", "v5p:2x2x1", "v5e:2x4", "v5e:4x4")


def plan(arguments: list[str]) -> list[str]:
  """Lines of the planner's page."""
  done = subprocess.run(
    [sys.executable, "-m", "gptneo_jax.plan", *arguments],
    cwd=HERE.parent, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  if lines and re.match(r"(fits|does not fit): ", lines[-1]):
    return lines
  raise SystemExit(f"the planner failed: {shlex.join(arguments)}")


def cell(model: str, topology: str) -> dict:
  """Whether it fits, with which settings, and GiB: of the config, else of what is advised."""
  given = [f"--config=configs/{model}.py", f"--topology={topology}"]
  lines, settings = plan(given), []
  if not lines[-1].startswith("fits"):
    commands = [line for line in lines if line.startswith("  python -m gptneo_jax.plan")]
    here = [c for c in commands if f"--topology={topology}" in c]
    if not here:
      return {"fits": False}
    settings = [a.removeprefix("--config.") for a in shlex.split(here[0]) if "--config." in a]
    lines = plan([*given, *(f"--config.{setting}" for setting in settings)])
  verdict = re.match(r"fits: ([\d.]+) GiB .*; ([\d.]+) GiB there", lines[-1])
  assert verdict, lines[-1]
  page = "\n".join(lines)  # what was chosen is there last, as it was compiled
  return {
    "fits": True,
    "needed": float(verdict[1]),
    "there": float(verdict[2]),
    "settings": settings,
    "grad_accumulation": int(re.findall(r"^  taken in +(\d+) part", page, re.MULTILINE)[-1]),
    "remat": re.findall(r"^  remat +(\w+)", page, re.MULTILINE)[-1],
  }


_SHORT = {
  "optimizer.name=adafactor": "Adafactor",
  "model.param_dtype=bfloat16": "bfloat16 weights",
}


def text_of(found: dict | None) -> str:
  if found is None:
    return "not compiled yet"
  if not found["fits"]:
    return "no"
  changed = [_SHORT.get(one) or one.replace("batch_size=", "batch ") for one in found["settings"]]
  parts = found["grad_accumulation"]
  how = [f"{parts} part{'s' * (parts > 1)}", found["remat"], *changed]
  return f"{found['needed']:.1f}: {', '.join(how)}"


def training_table(cells: dict) -> str:
  there = [f"{t} ({hardware.CHIPS[t.partition(':')[0]].memory_gib:.2f})" for t in TOPOLOGIES]
  rows = [["config", *there], ["---"] * (1 + len(TOPOLOGIES))]
  for model in MODELS:
    rows.append([f"`{model}`", *(text_of(cells.get(f"{model} {t}")) for t in TOPOLOGIES)])
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def uses_table() -> str:
  rows = [["use", *(f"`{model}`" for model in MODELS)], ["---"] * (1 + len(MODELS))]
  columns = {}
  for half, where in (("bfloat16", ""), (None, ", on a T4")):
    for model in MODELS:
      for use in memory_estimate.use_bytes(PRESETS[model], 2048, half=half):
        trains = use.name == "fine-tune"
        if trains or half:
          columns.setdefault(f"{use.name}: {use.terms}{where}", []).append(use.bytes)
  columns["convert: the host's memory"] = [
    memory_estimate.convert_bytes(PRESETS[m]) for m in MODELS
  ]
  for name, values in columns.items():
    rows.append([name, *(f"{value / memory_estimate.GIB:.1f}" for value in values)])
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def put(page: str, name: str, table: str) -> str:
  """The page with the text between the marks of a table replaced."""
  begin, end = f"<!-- table: {name} -->", "<!-- end -->"
  before, _, rest = page.partition(begin)
  _, _, after = rest.partition(end)
  if not after:
    raise SystemExit(f"{PAGE.name} has no {begin} … {end}")
  return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--again", action="store_true")
  args = parser.parse_args()
  cells = json.loads(CELLS.read_text()) if CELLS.exists() and not args.again else {}
  for topology in TOPOLOGIES:
    for model in MODELS:
      if (name := f"{model} {topology}") not in cells:
        cells[name] = cell(model, topology)
        print(name, cells[name], flush=True)
        CELLS.write_text(json.dumps(cells, indent=1) + "\n")
  page = put(PAGE.read_text(), "training", training_table(cells))
  PAGE.write_text(put(page, "uses", uses_table()))


if __name__ == "__main__":
  main()
