"""Saving and restoring a training state, beside torch.save and a copy of the same bytes.

  python experiments/bench_checkpoint.py [--model neo_125m] [--folder DIR]

Parameters and both of Adam's moments in float32 (1.5 GB at 125M). `seconds_blocked` is how long the
training loop waits for an asynchronous save. Every round writes to new files; the page cache of the
system serves all sides alike.
"""

import argparse
import pathlib
import shutil
import tempfile
import time

import bench
import jax
import numpy as np
import torch

from gptneo_jax import sharding, state
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.config import PRESETS
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.training import optimizer


def panels(results):
  title = f"a checkpoint of {results['GB']:.1f} GB, {results['model']}"
  return [bench.Panel(title, "seconds", {"": results["seconds"]})]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="neo_125m", choices=sorted(PRESETS))
  parser.add_argument("--folder", help="where to write; default the system's temporary folder")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  mesh = sharding.make_mesh()
  model = Decoder(PRESETS[args.model])
  rule, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig(name="adamw"), optimizer.ScheduleConfig(decay_steps=10_000)
  )
  abstract = state.abstract_state(model, rule, mesh)
  full = jax.block_until_ready(state.init_state(model, rule, mesh, seed=0))
  ours = {"params": full.params, "optimizer": full.opt_state}
  theirs = [torch.from_numpy(np.array(x)) for x in jax.tree.leaves(ours)]
  size = sum(x.nbytes for x in jax.tree.leaves(ours))
  blocked = []

  with tempfile.TemporaryDirectory(dir=args.folder) as name:
    base = pathlib.Path(name)
    checkpoints = Checkpointer(str(base / "ours"), keep_latest=1)
    step = 0

    def save():
      nonlocal step
      step += 1
      start = time.perf_counter()
      checkpoints.save(step, **ours, data_state={}, metrics={})
      blocked.append(time.perf_counter() - start)
      checkpoints.wait()

    def restore():
      restored = checkpoints.restore(abstract.params, abstract.opt_state)
      return restored.params, restored.optimizer

    def copy():
      shutil.copyfile(base / "torch.pt", base / "copy.pt")

    times = bench.alternate(
      {
        "save": save,
        "torch.save": lambda: torch.save(theirs, base / "torch.pt"),
        "copy": copy,
        "restore": restore,
        "torch.load": lambda: torch.load(base / "torch.pt"),
      },
      args.rounds,
    )
    checkpoints.close()
  bench.record(
    "bench_checkpoint",
    {
      "model": args.model,
      "GB": size / 1e9,
      "seconds": times,
      "GB_per_second": {name: size / 1e9 / row["median"] for name, row in times.items()},
      "save_beside_torch": bench.ratio(times, "torch.save", "save"),
      "save_beside_copy": bench.ratio(times, "copy", "save"),
      "restore_beside_torch": bench.ratio(times, "torch.load", "restore"),
      "seconds_blocked": bench.spread(blocked[2:]),
    },
    panels,
  )


if __name__ == "__main__":
  main()
