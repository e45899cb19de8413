"""Run by test_hosts.py as one of three processes of two devices.

At the end the first fails, while the second waits for it and the third is done.

Arguments: coordinator's address, this process's number, a folder. Prints its findings as JSON.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh

from gptneo_jax import sharding
from gptneo_jax.errors import UserError
from gptneo_jax.steps import place_batch
from gptneo_jax.training import joining, multihost


def rows_on_devices() -> bool:
  """Whether each device gets the rows that are its, where those of a host lie apart."""
  devices = np.array(jax.devices())[[0, 2, 4, 1, 3, 5]]
  mesh, number = Mesh(devices.reshape(1, 6, 1), sharding.MESH_AXES), jax.process_index()
  rows = multihost.local_rows(mesh, 12)
  assert rows.tolist() == [2 * number, 2 * number + 1, 2 * number + 6, 2 * number + 7]
  assert multihost.local_streams(mesh, 12, 6) == range(2 * number, 2 * number + 2)
  placed = place_batch({"inputs": np.stack([rows, 10 * rows], 1)}, mesh, 12)["inputs"]
  assert placed.shape == (12, 2)
  numbers = np.arange(12)
  return all(
    (np.asarray(shard.data)[:, 0] == numbers[shard.index[0]]).all()
    for shard in placed.addressable_shards
  )


def stops_at() -> int:
  """The step at which this process is told to stop, when the second gets SIGUSR1 at step 2."""
  stop, step = multihost.StopRequest(), 1
  while not stop() and step < 500:
    if step == 2 and jax.process_index() == 1:
      os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.02)
    step += 1
  return step


def fails_on_the_first(folder: pathlib.Path) -> None:
  if multihost.is_host0():
    raise UserError(f"{folder} is full")


def main(address: str, number: str, folder: str) -> None:
  with joining.joined(address, 3, int(number)):
    found = {
      "rows": rows_on_devices(),
      "stop": stops_at(),
      "gathered": multihost.gather_objects(
        {"of": jax.process_index(), "as": "x" * (1 + int(number))}
      ),
    }
    print(json.dumps(found), flush=True)
    if number == "2":
      return
    multihost.run_on_host0_first(lambda: fails_on_the_first(pathlib.Path(folder)))
    print("went on")


if __name__ == "__main__":
  main(*sys.argv[1:])
