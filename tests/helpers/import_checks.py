"""What importing every module of the package does, told as JSON: run in a process of its own."""

import importlib
import importlib.abc
import json
import logging
import os
import pkgutil
import random
import signal
import sys
import warnings

import gptneo_jax

# Of jax, but private or made for one platform: another version may lack them.
KERNELS = ("jax._src.cudnn", "jax.experimental.pallas.ops", "jax.experimental.pallas.tpu")


class _Hidden(importlib.abc.MetaPathFinder):
  """Makes modules, and those inside them, fail to import."""

  def find_spec(self, fullname, path=None, target=None):
    if any(fullname == name or fullname.startswith(f"{name}.") for name in KERNELS):
      raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def hide_kernels() -> None:
  """As in a jax that has them elsewhere, whose own modules find them: so jax is imported before."""
  import jax
  import jax.nn

  for name in filter(_is_kernel, list(sys.modules)):
    del sys.modules[name]
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
      vars(sys.modules[parent]).pop(child, None)
  sys.meta_path.insert(0, _Hidden())
  assert jax.nn


def _is_kernel(module: str) -> bool:
  return any(module == name or module.startswith(f"{name}.") for name in KERNELS)


def modules() -> list[str]:
  """Every module of the package."""
  found = pkgutil.walk_packages(gptneo_jax.__path__, "gptneo_jax.")
  return ["gptneo_jax", *(module.name for module in found)]


def import_all() -> list[str]:
  return [importlib.import_module(name).__name__ for name in modules()]


# --- without kernels ------------------------------------------------------------------------------


def without_kernels() -> dict:
  hide_kernels()
  imported = import_all()
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gptneo_jax import attention
  from gptneo_jax.config import ModelConfig
  from gptneo_jax.hardware import Hardware
  from gptneo_jax.model.chunked_cross_entropy import loss_sums
  from gptneo_jax.model.decoder import Decoder, output_table

  config = ModelConfig(
    vocab_size=61, hidden_size=16, num_layers=2, num_heads=2, window_size=8,
    max_position_embeddings=256,
  )  # fmt: skip
  model, ids = Decoder(config), jnp.arange(2 * 150).reshape(2, 150) % 61
  params = nn.unbox(model.init(jax.random.key(0), ids)["params"])

  def loss(params):
    hidden = model.apply({"params": params}, ids)
    weights = jnp.ones(ids.shape, jnp.float32)
    return loss_sums(hidden, output_table(config, params), ids, weights, 61, 0.0).objective

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  finite = all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))

  stream = logging.StreamHandler(sys.stderr)
  logging.getLogger("gptneo_jax.attention").addHandler(stream)
  logging.getLogger("gptneo_jax.attention").setLevel(logging.INFO)
  request = attention.AttentionRequest(length=2048, head_dim=128, dtype="bfloat16", segments=True)
  chosen, refused = {}, {}
  for hardware in (Hardware("tpu"), Hardware("gpu", (9, 0))):
    asked = request._replace(hardware=hardware)
    chosen[hardware.platform] = attention.resolve("auto", asked)
    kernel = attention.KERNELS[hardware.platform]
    try:
      attention.resolve(kernel, asked)
    except ValueError as error:
      refused[kernel] = str(error)
  return {
    "imported": imported,
    "hidden": not any(map(_is_kernel, sys.modules)),
    "finite": bool(finite),
    "chosen": chosen,
    "refused": refused,
  }


# --- global state ---------------------------------------------------------------------------------


def state() -> dict[str, object]:
  """What a library must leave as it is, in values that can be compared."""
  import jax
  import numpy as np

  loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
  return {
    "filters": {name: len(getattr(x, "filters", ())) for name, x in loggers.items()},
    "handlers": {name: len(getattr(x, "handlers", ())) for name, x in loggers.items()},
    "levels": {name: getattr(x, "level", 0) for name, x in loggers.items()},
    "hooks": [
      repr(getattr(sys, name))
      for name in ("unraisablehook", "excepthook", "displayhook", "stdin", "stdout", "stderr")
    ],
    "meta_path": [repr(finder) for finder in sys.meta_path],
    "path": list(sys.path),
    "random": repr(random.getstate()),
    "numpy.random": repr([np.asarray(part).tolist() for part in np.random.get_state()]),  # noqa: NPY002 (the state that is watched)
    "jax.config": {name: repr(value) for name, value in jax.config.values.items()},
    "environ": dict(os.environ),
    "signals": {str(s): repr(signal.getsignal(s)) for s in signal.valid_signals()},
    "warnings": [repr(entry) for entry in warnings.filters],
  }


def changed_by_importing() -> dict:
  """Third-party packages first, for they change what they like: those that ours imports, as the
  modules loaded with ours in another process tell."""
  third_party = json.load(sys.stdin)
  for name in third_party:
    try:
      importlib.import_module(name)
    except Exception as error:  # a part of a package that is not to be imported by itself
      print(f"{name}: {error}", file=sys.stderr)
  before, loaded_before = state(), _modules_of_others()
  import_all()
  after = state()
  changed = {}
  for key in before:
    old, new = before[key], after[key]
    if isinstance(old, dict):
      # A new logger is no change, unless it has a level, filters or handlers.
      differing = {k for k in old.keys() | new.keys() if old.get(k, 0) != new.get(k, 0)}
      old, new = ({k: d.get(k, 0) for k in differing} for d in (old, new))
    if old != new:
      changed[key] = [str(old), str(new)]
  return {
    "changed": changed,
    "modules_of_others_before": loaded_before,
    "modules_of_others_after": _modules_of_others(),
  }


def _modules_of_others() -> list[str]:
  return sorted(m for m in sys.modules if not m.startswith("gptneo_jax"))


def third_party() -> dict:
  """The modules that importing ours loads, in the order in which they were loaded."""
  import_all()
  return {"modules": [m for m in sys.modules if not m.startswith("gptneo_jax")]}


if __name__ == "__main__":
  check = {f.__name__: f for f in (without_kernels, changed_by_importing, third_party)}
  print(json.dumps(check[sys.argv[1]]()))
