"""The model's parameters as a list of layers, the layout that decoding runs on, and back.

Training scans over stacked layers (model/decoder.py); decoding runs unrolled over a list of them.
`unstacked_params` is the tree

  wte (V, D) · wpe (P, D) · ln_f/{scale,bias} (D) · lm_head (V, D) if untied · layers, a tuple of
    ln_1, ln_2/{scale,bias} (D)
    qkv/kernel (3, H, K, D), and bias (3, H, K) in GPT-2 · out/kernel (D, H, K), bias (D)
    c_fc/kernel (F, D), bias (F) · c_proj/kernel (D, F), bias (D)

Kernels have their outputs first: the product with one column reads such a matrix in the order of
memory, and so does the product with a few columns, which XLA on CPU computes twice as fast as that
of the other layout (experiments/bench_decode.py).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.config import ModelConfig
from gptneo_jax.sharding import constrain

_OUTPUTS_FIRST = {
  "out": (axes.EMBED, axes.HEADS, axes.HEAD_DIM),
  "c_fc": (axes.MLP, axes.EMBED),
  "c_proj": (axes.EMBED, axes.MLP),
}


@functools.partial(jax.jit, static_argnames="config")
def decoding_params(config: ModelConfig, params: Any) -> dict[str, Any]:
  """The parameters unstacked, matrices in the type of the computation: what decoding runs on."""
  dtype = jnp.dtype(config.dtype)
  is_norm = lambda path: any(getattr(key, "key", "").startswith("ln_") for key in path)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if is_norm(path) else x.astype(dtype), unstack(config, params)
  )


def unstack(config: ModelConfig, params: Any) -> dict[str, Any]:
  """The parameters of a decoder with its layers in a list, heads but the language model's left out.

  Sharded by the table of sharding.py if a mesh is set. Call it under jit: else it runs array by
  array.
  """
  tables = ("wte", "wpe", "lm_head", "ln_f")
  blocks = params["blocks"]
  period = config.period
  return {
    **{name: params[name] for name in tables if name in params},
    "layers": tuple(
      _layer(jax.tree.map(lambda leaf, i=i: leaf[i // period], blocks[f"layer_{i % period}"]))
      for i in range(config.num_layers)
    ),
  }


def stack(config: ModelConfig, unstacked_params: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `unstack`."""
  layers = [_block(layer) for layer in unstacked_params["layers"]]
  blocks = {
    f"layer_{j}": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[j :: config.period])
    for j in range(config.period)
  }
  return {**{k: v for k, v in unstacked_params.items() if k != "layers"}, "blocks": blocks}


def _layer(block: dict[str, Any]) -> dict[str, Any]:
  attn, mlp = block["attn"], block["mlp"]
  kernel_3xHxKxD = jnp.stack([jnp.moveaxis(attn[name]["kernel"], 0, -1) for name in "qkv"])
  qkv = {"kernel": constrain(kernel_3xHxKxD, None, axes.HEADS, axes.HEAD_DIM, axes.EMBED)}
  if "bias" in attn["q"]:
    bias_3xHxK = jnp.stack([attn[name]["bias"] for name in "qkv"])
    qkv["bias"] = constrain(bias_3xHxK, None, axes.HEADS, axes.HEAD_DIM)
  rest = {
    name: {**dense, "kernel": constrain(jnp.moveaxis(dense["kernel"], -1, 0), *names)}
    for (name, names), dense in zip(
      _OUTPUTS_FIRST.items(), (attn["out"], mlp["c_fc"], mlp["c_proj"])
    )
  }
  return {"ln_1": block["ln_1"], "ln_2": block["ln_2"], "qkv": qkv, **rest}


def _block(layer: dict[str, Any]) -> dict[str, Any]:
  inputs_first = {
    name: {**layer[name], "kernel": jnp.moveaxis(layer[name]["kernel"], 0, -1)}
    for name in _OUTPUTS_FIRST
  }
  heads = {
    name: {
      key: jnp.moveaxis(value[i], -1, 0) if key == "kernel" else value[i]
      for key, value in layer["qkv"].items()
    }
    for i, name in enumerate("qkv")
  }
  return {
    "ln_1": layer["ln_1"],
    "ln_2": layer["ln_2"],
    "attn": {**heads, "out": inputs_first["out"]},
    "mlp": {name: inputs_first[name] for name in ("c_fc", "c_proj")},
  }
