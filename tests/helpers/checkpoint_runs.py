"""A small training state, saved, restored and compared bit for bit."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptneo_jax.checkpoints import manager


def state_of(seed=0):
  """A small training state with every kind of leaf: float32, bfloat16, int, scalar, key data."""
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "wte": jax.random.normal(keys[0], (16, 8)),
    "blocks": {"layer_0": {"kernel": jax.random.normal(keys[1], (2, 8, 4), jnp.bfloat16)}},
  }
  optimizer = {
    "state": optax.adam(lambda step: 0.1 * step).init(params),
    "step": jnp.int32(seed),
    "key": jax.random.key_data(keys[2]),
  }
  return params, optimizer


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(checkpointer, step, metrics=None):
  params, optimizer = state_of(step)
  data_state = {"position": step, "streams": [1, 2]}
  return checkpointer.save(
    step, params=params, optimizer=optimizer, data_state=data_state, metrics=metrics
  )


def restore(folder):
  checkpointer = manager.Checkpointer(folder)
  try:
    return checkpointer.restore(*map(abstract, state_of()))
  finally:
    checkpointer.close()


def assert_is_step(restored, step):
  params, optimizer = state_of(step)
  assert restored.step == step
  assert restored.data_state == {"position": step, "streams": [1, 2]}
  for actual, expected in ((restored.params, params), (restored.optimizer, optimizer)):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
      assert (a.dtype, a.shape) == (b.dtype, b.shape)
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run_python(code, *arguments, **environment):
  """Starts a Python that runs `code`."""
  root = str(pathlib.Path(manager.__file__).parents[2])
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
