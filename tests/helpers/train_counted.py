"""The training program; each process also writes the rows of its streams to a file.

FOLDER/N.npz of process N, with FOLDER in ROWS_FOLDER: `streams`, their numbers, and `rows`, of each
step the T + 1 tokens of each row.
"""

import os

import jax
import numpy as np

from gptneo_jax import train
from gptneo_jax.training import multihost

place_batch = train.place_batch
rows: list[np.ndarray] = []


def counted(batch, mesh, batch_size):
  rows.append(np.concatenate([batch["inputs"], batch["targets"][:, -1:]], axis=1))
  streams = multihost.local_streams(mesh, batch_size, 8)
  np.savez(f"{os.environ['ROWS_FOLDER']}/{jax.process_index()}.npz", streams=streams, rows=rows)
  return place_batch(batch, mesh, batch_size)


if __name__ == "__main__":
  train.place_batch = counted
  train.main()
