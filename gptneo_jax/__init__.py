"""JAX/Flax home of GPT-Neo.

import gptneo_jax

lm = gptneo_jax.load("EleutherAI/gpt-neo-125m")   # or a folder
lm.generate("The dog").texts
"""

import sys
from importlib import import_module, metadata

from packaging.version import Version

# The oldest supported versions, as in setup.cfg.
_NEEDS = {
  "jax": "0.10.2",
  "datasets": "4",
  "flax": "0.12.8",
  "optax": "0.2.8",
  "orbax-checkpoint": "0.12.8",
  "qwix": "0.1.8",
  "ml_collections": "1.1",
  "transformers": "5",
}


def _check_versions() -> None:
  """Raises ImportError, in one line, if a package is too old: notebooks come with their own."""
  problems, installs = [], []
  for package, least in _NEEDS.items():
    try:
      installed = metadata.version(package)
    except metadata.PackageNotFoundError:
      installed = "none"
    loaded = getattr(sys.modules.get(package), "__version__", installed)
    if installed == "none" or Version(installed) < Version(least):
      installs.append(f"'{package}>={least}'")
    elif Version(loaded) >= Version(least):
      continue
    there = f"{installed} is installed" if loaded == installed else f"{loaded} is loaded"
    problems.append(f"{package} {least} or later is needed, {there}")
  if problems:
    install = f"pip install -U {' '.join(installs)}, then " if installs else ""
    raise ImportError(
      f"gptneo_jax: {'; '.join(problems)}: {install}restart the runtime if this is a notebook",
      name=__name__,  # with it `python -m gptneo_jax.train` prints this line and no traceback
    )


_check_versions()

_HOMES = {
  "load": "gptneo_jax.engine",
  "init": "gptneo_jax.engine",
  "ModelConfig": "gptneo_jax.config",
  "PRESETS": "gptneo_jax.config",
}

__all__ = ["PRESETS", "ModelConfig", "__version__", "init", "load"]


def __getattr__(name: str):
  """The public names, imported when first used: `import gptneo_jax` alone stays fast."""
  if name == "__version__":
    return metadata.version("gptneo_jax")
  if name not in _HOMES:
    raise AttributeError(f"module 'gptneo_jax' has no attribute {name!r}")
  return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
