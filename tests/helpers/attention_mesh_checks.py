"""Run by test_attention_partition.py in a process of 8 CPU devices; prints its findings as JSON."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.sharding import NamedSharding

from gptneo_jax import axes, sharding
from gptneo_jax.attention import MaskSpec, cudnn, reference, splash
from gptneo_jax.attention.partition import per_device
from gptneo_jax.sharding import partition

SPEC = partition(axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)
CASES = {
  "data=8": (8, True, {"data": 8}),
  "2 x 2 x 2": (8, True, {"data": 2, "fsdp": 2, "tensor": 2}),
  "2 x 2 x 2, no segments": (4, False, {"data": 2, "fsdp": 2, "tensor": 2}),
  "rows that the mesh does not divide": (3, True, {"data": 4, "tensor": 2}),
}


def values(attend, dout, ids_BxT, *inputs):
  """Output and gradients."""
  out, pullback = jax.vjp(lambda *x: attend(*x, MaskSpec(9, ids_BxT)), *inputs)
  return out, *pullback(dout)


def run_case(B: int, segmented: bool, sizes: dict[str, int]) -> dict:
  rng = np.random.default_rng(B)
  dout, q, k, v = (jnp.asarray(rng.standard_normal((B, 24, 2, 8)), jnp.float32) for _ in range(4))
  ids_BxT = jnp.asarray(rng.integers(0, 5, B)[:, None] <= np.arange(24)) if segmented else None
  ids_BxT = None if ids_BxT is None else ids_BxT.astype(jnp.int32)
  expected = values(functools.partial(reference.attend, scale=0.5), dout, ids_BxT, q, k, v)

  mesh = sharding.make_mesh(**sizes)
  kernel = functools.partial(splash.attend, scale=0.5, interpret=True)

  def attend(q, k, v, spec):
    return per_device(kernel, q, k, v, spec, SPEC)

  with jax.set_mesh(mesh):
    if B % 4 == 0:
      dout, q, k, v = jax.device_put((dout, q, k, v), NamedSharding(mesh, SPEC))
    compiled = jax.jit(functools.partial(values, attend)).lower(dout, ids_BxT, q, k, v).compile()
    got = compiled(dout, ids_BxT, q, k, v)
  return {
    "errors": [
      float(np.abs(np.asarray(g) - np.asarray(e)).max()) for g, e in zip(got, expected, strict=True)
    ],
    "held": [held_shape(x) for x in got],
    "collectives": len(re.findall(r"(all-gather|all-reduce|all-to-all)\(", compiled.as_text())),
  }


def held_shape(x: jax.Array) -> list[int]:
  return list(x.addressable_shards[0].data.shape)


def cudnn_dimensions() -> list[str]:
  """Of the scores that each device's call to cuDNN is for: rows, heads, queries, keys."""
  fused.check_cudnn_version = lambda: 91000
  fused.check_compute_capability = lambda _: True
  fused.is_cuda_compute_capability_equal = lambda _: False
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)

  def attend(q, k, v):
    kernel = functools.partial(cudnn.attend, scale=1.0)
    return per_device(kernel, q, k, v, MaskSpec(256), SPEC)

  x = jax.ShapeDtypeStruct((8, 640, 6, 64), jnp.bfloat16, sharding=NamedSharding(mesh, SPEC))
  with jax.set_mesh(mesh):
    text = jax.jit(attend).trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
  (config,) = re.findall(r'@__cudnn\$fmhaSoftmax\(.*?backend_config = "((?:[^"\\]|\\.)*)"', text)
  config = json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"]
  return config["intermediate_tensor_shape"]["dimensions"]


def main():
  found = {
    "cases": {name: run_case(*case) for name, case in CASES.items()},
    "cudnn": cudnn_dimensions(),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main()
