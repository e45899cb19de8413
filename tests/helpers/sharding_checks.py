"""Run by test_sharding.py in a process of 8 CPU devices; prints its findings as JSON."""

import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.model import chunked_cross_entropy
from gptneo_jax.model.chunked_cross_entropy import loss_sums, predictions_of_tokens
from gptneo_jax.model.decoder import Decoder, output_table

NEO = ModelConfig(
  vocab_size=59, vocab_multiple=8, max_position_embeddings=32, hidden_size=32, num_layers=4,
  num_heads=4, window_size=7,
)  # fmt: skip
GPT2 = NEO.replace(
  model_type="gpt2", attention_pattern=("global",), tie_word_embeddings=False, remat="dots"
)
CASES = {
  "neo, data=8": (NEO, {"data": 8}),
  "neo, fsdp=8": (NEO, {"data": 1, "fsdp": 8}),
  "neo, 2 x 2 x 2": (NEO, {"data": 2, "fsdp": 2, "tensor": 2}),
  "gpt2, data=-1 tensor=4": (GPT2, {"data": -1, "tensor": 4}),
}


def abstract_params(config: ModelConfig):
  """Shapes of the parameters with their logical names."""
  ids_BxT = jnp.zeros((1, 8), jnp.int32)
  return jax.eval_shape(Decoder(config).init, jax.random.key(0), ids_BxT)["params"]


@functools.cache
def make(config: ModelConfig):
  """Abstract boxed and real parameters, a function to loss and gradients, and its results."""
  model, boxed, rng = Decoder(config), abstract_params(config), np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), nn.unbox(boxed)
  )

  def loss(params, ids_BxT):
    hidden_BxTxD = model.apply({"params": params}, ids_BxT)
    targets_BxT = jnp.roll(ids_BxT, -1, axis=1)
    weights_BxT = jnp.ones(ids_BxT.shape).at[:, -1].set(0.0)
    weights_BxT = weights_BxT.at[3:].set(0.0)  # devices with none skip what others visit
    arguments = hidden_BxTxD, output_table(config, params), targets_BxT, weights_BxT
    sums = loss_sums(*arguments, config.vocab_size, 1e-2)
    arguments = jax.lax.stop_gradient(arguments)
    evaluated = predictions_of_tokens(*arguments, config.vocab_size)
    return sums.objective, (sums.nll, *(x_BxT.sum() for x_BxT in evaluated))

  ids_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (8, 24)).astype(np.int32)
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  return boxed, params, ids_BxT, value_and_grad, jax.jit(value_and_grad)(params, ids_BxT)


def relative(got, expected) -> float:
  """The largest difference of any leaf, over that leaf's largest entry.

  Leaves that are nothing but rounding (the gradient of GPT-2's key bias is 0) count as they are.
  """
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
  worst = 0.0
  for g, e in pairs:
    g, e = np.asarray(g), np.asarray(e)
    size = np.abs(e).max()
    worst = max(worst, float(np.abs(g - e).max() / (size if size > 1e-6 else 1.0)))
  return worst


def run_case(config: ModelConfig, mesh_sizes: dict[str, int]) -> dict:
  boxed, params, ids_BxT, value_and_grad, (loss, gradients) = make(config)
  mesh = sharding.make_mesh(**mesh_sizes)
  shardings = sharding.param_shardings(mesh, boxed)
  placed = jax.device_put(params, shardings)
  batch = jax.device_put(ids_BxT, NamedSharding(mesh, sharding.BATCH_SPEC))
  with jax.set_mesh(mesh):
    step = jax.jit(value_and_grad, out_shardings=(None, shardings))
    sharded_loss, sharded_gradients = step(placed, batch)
  first = jax.devices()[0]
  held = [s for x in jax.tree.leaves(placed) for s in x.addressable_shards if s.device == first]
  kept_whole = sum(x.nbytes for x in jax.tree.leaves(placed) if x.sharding.is_fully_replicated)
  return {
    "loss": relative(sharded_loss, loss),
    "gradients": relative(sharded_gradients, gradients),
    "total_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
    "held_bytes": sum(s.data.nbytes for s in held),
    "reported_bytes": sharding.bytes_per_device(placed),
    "gradient_bytes": sharding.bytes_per_device(sharded_gradients),
    "replicated_bytes": kept_whole,
    "batch_rows": batch.addressable_shards[0].data.shape[0],
    "mesh": dict(mesh.shape),
    "specs": {
      jax.tree_util.keystr(path, simple=True, separator="/"): [*leaf.sharding.spec]
      for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
    },
  }


def refusal(config: ModelConfig, **mesh_sizes) -> str:
  boxed = abstract_params(config)
  try:
    sharding.param_shardings(sharding.make_mesh(**mesh_sizes), boxed)
  except ValueError as error:
    return str(error)
  return "accepted"


def mesh_refusal(**mesh_sizes) -> str:
  try:
    return str(math.prod(sharding.make_mesh(**mesh_sizes).shape.values()))
  except ValueError as error:
    return str(error)


def main():
  chunked_cross_entropy._chunk_size = lambda: 8  # several on each device
  found = {
    "devices": jax.device_count(),
    "cases": {name: run_case(config, mesh) for name, (config, mesh) in CASES.items()},
    "vocab": refusal(NEO.replace(vocab_multiple=1), data=2, tensor=4),
    "heads": refusal(NEO, data=1, tensor=8),
    "embed": refusal(NEO.replace(hidden_size=12, num_heads=2), data=1, fsdp=8),
    "too_small": mesh_refusal(data=2, fsdp=2, tensor=1),
  }
  chunked_cross_entropy._on_gpu = lambda: (
    True
  )  # each device's 32 rows of the table become 128 columns
  found["cases"]["neo, 2 x 2 x 2, columns of a GPU"] = run_case(*CASES["neo, 2 x 2 x 2"])
  print(json.dumps(found))


if __name__ == "__main__":
  main()
