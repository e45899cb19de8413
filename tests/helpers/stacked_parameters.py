"""A small model's parameters as they are stacked over layers: shapes, and random trees."""

import jax
import numpy as np

LAYERS, EMBED, HEADS, HEAD_DIM, MLP, VOCAB, LENGTH = 3, 8, 2, 4, 16, 11, 5


NORM = {"scale": (LAYERS, EMBED), "bias": (LAYERS, EMBED)}
BLOCK = {  # stacked over layers, as in the scanned model
  "ln_1": NORM,
  "attn": {
    **{name: {"kernel": (LAYERS, EMBED, HEADS, HEAD_DIM)} for name in "qkv"},
    "out": {"kernel": (LAYERS, HEADS, HEAD_DIM, EMBED), "bias": (LAYERS, EMBED)},
  },
  "ln_2": NORM,
  "mlp": {
    "c_fc": {"kernel": (LAYERS, EMBED, MLP), "bias": (LAYERS, MLP)},
    "c_proj": {"kernel": (LAYERS, MLP, EMBED), "bias": (LAYERS, EMBED)},
  },
}
SHAPES = {
  "wte": (VOCAB, EMBED),
  "wpe": (LENGTH, EMBED),
  "blocks": {"layer_0": BLOCK},
  "ln_f": {"scale": (EMBED,), "bias": (EMBED,)},
}


def random_tree(shapes, seed, size=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: (size * rng.standard_normal(shape)).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def by_path(tree):
  return {
    "/".join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
