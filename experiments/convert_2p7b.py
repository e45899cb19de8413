"""How much memory and time the conversion of a full-size GPT-Neo 2.7B takes.

  python experiments/convert_2p7b.py /path/with/45_GB_free [--model neo_2p7b]

Makes random weights in Hugging Face's layout piece by piece (10.6 GB in float32, in several files),
copies them for comparison, converts them to Orbax and back, and to bfloat16, each in a process of
its own, and compares what came back bit by bit. Prints peak resident memory and speed as a fraction
of the copy's; removes what it made. Expected: below 5 GB each way, half the speed of the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np

from gptneo_jax.config import PRESETS
from gptneo_jax.interop import hf_config, hf_export, name_map
from gptneo_jax.interop.safetensors_file import open_safetensors, write_safetensors


def make(folder: pathlib.Path, preset: str) -> None:
  """A model of theirs with weights of deviation 0.02, as transformers initialises them."""
  config = PRESETS[preset]
  shapes = name_map.leaf_shapes(config)
  specs = {
    entry.name: (name_map.hf_shape(entry, shapes, config.vocab_size), np.dtype(np.float32))
    for entry in name_map.entries(config)
  }
  files = hf_export.split_into_files(specs)
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  for file, names in files.items():
    arrays = (0.02 * rng.standard_normal(specs[name][0], np.float32) for name in names)
    write_safetensors(folder / file, {name: specs[name] for name in names}, arrays)
  index = {"weight_map": {name: file for file, names in files.items() for name in names}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text(json.dumps(hf_config.to_hf(config, {}, "5")))


def convert(*arguments: str) -> tuple[float, float]:
  """Runs the program; returns seconds, and its peak resident memory in GB."""
  command = [sys.executable, "-m", "gptneo_jax.convert", *arguments, "--no_tokenizer"]
  start = time.time()
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{' '.join(command)} failed")
  return time.time() - start, usage.ru_maxrss / 1e6


def size(folder: pathlib.Path) -> float:
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def same(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two models hold the same tensors, bit by bit."""
  left, right = ({n: t for f in sorted(folder.glob("*.safetensors"))
                  for n, t in open_safetensors(f).items()} for folder in (a, b))  # fmt: skip
  return left.keys() == right.keys() and all(
    np.array_equal(t.read().view(np.uint32), right[name].read().view(np.uint32))
    for name, t in left.items()
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--model", default="neo_2p7b", choices=sorted(PRESETS))
  args = parser.parse_args()
  base = args.folder / "convert_2p7b"
  hf, copy, ours, back, half = (base / n for n in ("hf", "copy", "ours", "back", "bfloat16"))
  try:
    make(hf, args.model)
    gigabytes = size(hf)
    print(f"{args.model}: {gigabytes:.2f} GB in {len(list(hf.glob('*.safetensors')))} files")
    copies = []
    for _ in range(3):  # the first may write out what making left in memory
      start = time.time()
      shutil.copytree(hf, copy)
      copies.append(time.time() - start)
      shutil.rmtree(copy)
    copied = sorted(copies)[1]
    print(f"copy {copied:.1f} s of {', '.join(f'{s:.1f}' for s in copies)}")
    runs = {
      "hf-to-orbax": ("hf-to-orbax", str(hf), str(ours)),
      "orbax-to-hf": ("orbax-to-hf", str(ours), str(back)),
      "orbax-to-hf bfloat16": ("orbax-to-hf", str(ours), str(half), "--dtype", "bfloat16"),
    }
    for name, arguments in runs.items():
      seconds, peak = convert(*arguments)
      print(
        f"{name}: {seconds:.1f} s, {gigabytes / seconds:.2f} GB/s, {copied / seconds:.2f} of the"
        f" copy's speed, peak {peak:.2f} GB"
      )
    print(f"back bit by bit: {same(hf, back)}; in bfloat16 {size(half):.2f} GB")
  finally:
    shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
  main()
