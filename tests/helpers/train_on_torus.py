"""The training program on a mesh whose neighbours are of different hosts, as on a torus.

For two hosts of two devices: the first feeds the first and the third quarter of a batch.
"""

from jax.sharding import Mesh

from gptneo_jax import sharding, train

make_mesh = sharding.make_mesh


def alternating(**sizes) -> Mesh:
  mesh = make_mesh(**sizes)
  devices = mesh.devices.reshape(2, -1).T.reshape(mesh.devices.shape)
  return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


if __name__ == "__main__":
  sharding.make_mesh = alternating
  train.main()
