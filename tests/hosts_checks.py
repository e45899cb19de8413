"""Run by test_hosts.py as one of two processes of two devices; the first fails while both start.

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

from gptneo_jax import hosts, sharding
from gptneo_jax.errors import UserError
from gptneo_jax.steps import place_batch


def rows_on_devices() -> bool:
  """Whether each device gets the rows that are its, where those of a host are 0, 1, 4 and 5."""
  devices = np.array(jax.devices())[[0, 2, 1, 3]]
  mesh = Mesh(devices.reshape(1, 4, 1), sharding.MESH_AXES)
  rows = hosts.local_rows(mesh, 8)
  assert rows.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]][jax.process_index()]
  assert hosts.local_streams(mesh, 8, 4) == [range(2), range(2, 4)][jax.process_index()]
  placed = place_batch({"inputs": np.stack([rows, 10 * rows], 1)}, mesh, 8)["inputs"]
  assert placed.shape == (8, 2)
  numbers = np.arange(8)
  return all(
    (np.asarray(shard.data)[:, 0] == numbers[shard.index[0]]).all()
    for shard in placed.addressable_shards
  )


def stops_at() -> int:
  """The step at which this process is told to stop, when the second one gets SIGUSR1 at step 2."""
  stop, step = hosts.StopRequest(), 1
  while not stop() and step < 500:
    if step == 2 and not hosts.is_first():
      os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.02)
    step += 1
  return step


def fails_on_the_first(folder: pathlib.Path) -> None:
  if hosts.is_first():
    raise UserError(f"{folder} is full")


def main(address: str, number: str, folder: str) -> None:
  with hosts.joined(address, 2, int(number)):
    found = {
      "rows": rows_on_devices(),
      "stop": stops_at(),
      "gathered": hosts.gather_objects({"of": jax.process_index(), "as": "x" * (1 + int(number))}),
    }
    print(json.dumps(found), flush=True)
    hosts.first_then_others(lambda: fails_on_the_first(pathlib.Path(folder)))
    print("went on")


if __name__ == "__main__":
  main(*sys.argv[1:])
