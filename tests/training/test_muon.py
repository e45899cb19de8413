"""Muon against a float64 transcription on an unstacked model; which leaf goes where."""

import math

import jax
import numpy as np
import optax

from gptneo_jax.training import muon, optimizer
from tests.helpers.stacked_parameters import EMBED, LAYERS, SHAPES, by_path, random_tree

MUON = ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/c_fc", "mlp/c_proj")


def test_muon_updates_the_kernels_of_blocks_and_nothing_else():
  labels = by_path(muon.labels(random_tree(SHAPES, 0)))
  expected = dict.fromkeys(labels, "adam")
  expected |= {f"blocks/layer_0/{name}/kernel": "muon" for name in MUON}
  assert labels == expected
  gpt2 = {"blocks": {"layer_0": {"attn": {"q": {"kernel": (3, 8, 2, 4), "bias": (3, 2, 4)}}}},
          "lm_head": (11, 8), "head": {"kernel": (8, 2)}}  # fmt: skip
  labels = by_path(muon.labels(random_tree(gpt2, 0)))
  assert [path for path, label in labels.items() if label == "muon"] == [
    "blocks/layer_0/attn/q/kernel"
  ]


def _reference_muon(params, grads_of_steps, *, rate, b1, b2, eps, decay):
  """Muon in float64 on an unstacked model, from the reference text (Jordan's `muon.py`, with the
  bias-corrected momentum of optax, and updates of root mean square 0.2); AdamW for the rest."""
  p = {k: np.asarray(v, np.float64) for k, v in params.items()}
  m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
  for t, grads in enumerate(grads_of_steps, 1):
    for k, g in grads.items():
      g = np.asarray(g, np.float64)
      if k.removesuffix("/kernel").split(".")[-1] in MUON:
        m[k] = 0.95 * m[k] + 0.05 * g
        x = 0.95 * m[k] / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)  # Nesterov's
        inputs = EMBED if g.shape[0] == EMBED else math.prod(g.shape[:-1])
        x = x.reshape(inputs, -1)
        size = 0.2 * math.sqrt(max(x.shape))
        x = x / np.linalg.norm(x)
        for _ in range(5):  # Newton and Schulz' iteration, quintic
          y = x @ x.T
          x = 3.4445 * x + (-4.7750 * y + 2.0315 * y @ y) @ x
        update = size * x.reshape(g.shape)
      else:
        m[k] = b1 * m[k] + (1 - b1) * g
        v[k] = b2 * v[k] + (1 - b2) * g**2
        update = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
      decayed = not k.endswith(("bias", "scale"))
      p[k] = p[k] - rate * (update + decayed * decay * p[k])
  return p


def _unstacked(tree):
  """Flat, each layer's parameters apart: 'blocks.0.attn/q/kernel'."""
  flat = {}
  for path, x in by_path(tree).items():
    if not path.startswith("blocks/"):
      flat[path] = x
      continue
    for layer in range(LAYERS):
      flat[f"blocks.{layer}.{path.removeprefix('blocks/layer_0/')}"] = x[layer]
  return flat


def test_three_updates_of_muon_equal_the_float64_transcription_on_an_unstacked_model():
  config = optimizer.OptimizerConfig("muon", learning_rate=0.02, weight_decay=0.1, clip_norm=0)
  constant = optimizer.ScheduleConfig(name="constant", warmup_steps=0, decay_steps=10)
  tx, _ = optimizer.make_optimizer(config, constant)
  params = random_tree(SHAPES, 0)
  # Layers of very different size: the update of one must not depend on another's.
  params["blocks"] = jax.tree.map(
    lambda x: x * np.array([1, 100, 0.01], np.float32).reshape(3, *[1] * (x.ndim - 1)),
    params["blocks"],
  )
  grads = [jax.tree.map(np.multiply, random_tree(SHAPES, 1 + i), params) for i in range(3)]
  expected = _reference_muon(
    _unstacked(params), [_unstacked(g) for g in grads], rate=0.02, b1=0.9, b2=0.95, eps=1e-8,
    decay=0.1,
  )  # fmt: skip
  before, state, update = _unstacked(params), tx.init(params), jax.jit(tx.update)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  for path, actual in _unstacked(params).items():
    moved = np.abs(expected[path] - before[path]).max()
    np.testing.assert_allclose(actual, expected[path], rtol=1e-6, atol=1e-4 * moved, err_msg=path)
