"""Run by test_hlo_costs.py in a process of 8 CPU devices; prints its findings as JSON."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gptneo_jax.planning import hlo, hlo_costs


def main():
  mesh = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)

  def shape(sizes, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)

  M, D, L = 32, 64, 6
  x, w = shape((M, D), "rows", "columns"), shape((L, D, D), None, "columns", None)

  def layers(x, w):
    def layer(x, w):
      y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, PartitionSpec("rows", None)))
      return jax.lax.with_sharding_constraint(jnp.tanh(y), x_sharding), None

    return jax.lax.scan(layer, x, w)[0]

  x_sharding = x.sharding
  module = hlo.parse(jax.jit(layers, out_shardings=x_sharding).lower(x, w).compile().as_text())
  found = {name: list(one) for name, one in hlo_costs.collectives(module).items()}
  found |= {
    "flops": hlo_costs.flops(module),
    "expected_flops": 2 * (M // 2) * (D // 4) * D * L,
    "bytes_of_y": 4 * (M // 2) * D,
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main()
