"""JAX/Flax home of GPT-Neo.

import gptneo_jax

lm = gptneo_jax.load("EleutherAI/gpt-neo-125m")   # or a folder
lm.generate("The dog").texts
"""

from importlib import import_module

_HOMES = {
  "load": "gptneo_jax.engine",
  "init": "gptneo_jax.engine",
  "ModelConfig": "gptneo_jax.config",
  "PRESETS": "gptneo_jax.config",
}

__all__ = ["PRESETS", "ModelConfig", "__version__", "init", "load"]


def __getattr__(name: str):
  """The public names, imported when first used: `import gptneo_jax` alone costs nothing."""
  if name == "__version__":
    from importlib import metadata

    return metadata.version("gptneo_jax")
  if name not in _HOMES:
    raise AttributeError(f"module 'gptneo_jax' has no attribute {name!r}")
  return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
