"""Provenance of a report's numbers: hashes of files and weights, versions, hardware."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from gptneo_jax import engine
from gptneo_jax.checkpoints import adapters
from gptneo_jax.checkpoints.folder import is_checkpoint_folder
from gptneo_jax.checkpoints.step_folders import find_checkpoint, latest_step
from gptneo_jax.cli import progress_bar
from gptneo_jax.data import DocumentEncoder, commit_of_folder
from gptneo_jax.interop import hub
from gptneo_jax.interop.hf_files import TOKENIZER_FILES, weights_file

_PIECE = 1 << 20
_PACKAGES = (
  "gptneo_jax", "jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers", "lm-eval"
)  # fmt: skip


def of_checkpoint(
  name: str, step: int | str | None = None, adapter: str | None = None, *, progress: bool = True
) -> dict[str, Any]:
  """name, step (of a checkpoint of a run) or commit (of the hub), adapter, sha256 of each file.

  The files are the weights, config.json, the tokenizer's and the adapter's. name, step, adapter:
  as `engine.load` takes them.
  """
  about: dict[str, Any] = {"name": name}
  found, number = find_checkpoint(name, step)
  if is_checkpoint_folder(found):
    folder = epath.Path(found)
    step = latest_step(found) if number is None else number
    if step is not None:
      about["step"] = step
      weights = list(_files_below(folder / str(step) / "params"))
      if (folder / adapters.FILE).exists():  # of LoRA: into the base these are merged
        weights += [folder / adapters.FILE, *_files_below(folder / adapters.BASE)]
    else:
      weights = list(folder.glob("*.safetensors"))  # quantized
  else:
    folder = epath.Path(hub.local_folder(name))
    if commit := commit_of_folder(folder):
      about["commit"] = commit
    file = weights_file({path.name for path in folder.iterdir()}) or ""
    stem, _, suffix = file.removesuffix(".index.json").rpartition(".")
    weights = list(folder.glob(f"{stem}*.{suffix}"))
  others = [folder / file for file in ("config.json", *TOKENIZER_FILES)]
  paths = sorted(weights) + [path for path in others if path.exists()]
  files = {str(path.relative_to(folder)): functools.partial(path.open, "rb") for path in paths}
  if adapter is not None:
    about["adapter"] = adapter
    files |= {
      f"adapter/{path.name}": functools.partial(path.open, "rb")
      for path in sorted(epath.Path(adapter).expanduser().iterdir())
      if path.is_file()
    }
  return {**about, "sha256": of_files(files, progress=progress)}


def of_files(files: Mapping[str, Callable[[], Any]], *, progress: bool = True) -> dict[str, str]:
  """sha256 of each file by its name; files: {name: function that opens the file}."""
  hashes = {}
  with progress_bar(
    desc="hashing files", unit="B", unit_scale=True, delay=3, disable=not progress
  ) as bar:
    for name, opened in files.items():
      digest = hashlib.sha256()
      with opened() as file:
        while piece := file.read(_PIECE):
          digest.update(piece)
          bar.update(len(piece))
      hashes[name] = digest.hexdigest()
  return hashes


def of_tokenizer(lm: engine.LanguageModel) -> str | None:
  """A hash of the vocabulary and the end of text; None without a tokenizer."""
  return None if lm.tokenizer is None else DocumentEncoder(lm.tokenizer).fingerprint()


def of_model(lm: engine.LanguageModel) -> str:
  """A hash of a loaded model's config, weights and tokenizer: 16 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=8)
  digest.update(json.dumps([lm.config.to_dict(), lm.quantization], sort_keys=True).encode())
  if lm.tokenizer is not None:
    digest.update(DocumentEncoder(lm.tokenizer).fingerprint().encode())
  with jax.set_mesh(lm.mesh):
    for path, leaf in jax.tree_util.tree_leaves_with_path(lm.params):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.asarray(_checksum(leaf)).tobytes())
  return digest.hexdigest()


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """A 64-bit hash of an array's values and their positions, as two uint32, computed on its devices.

  It uses integers only, so that it is the same for every sharding.
  """
  unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
  mixed = (bits ^ (index * np.uint32(0x9E3779B1))) * np.uint32(0x85EBCA77)
  mixed = (mixed ^ (mixed >> 15)) * np.uint32(0xC2B2AE3D)
  mixed ^= mixed >> 13
  return jnp.stack([mixed.sum(dtype=jnp.uint32), (mixed * (2 * index + 1)).sum(dtype=jnp.uint32)])


def of_software() -> dict[str, str]:
  return versions(_PACKAGES)


def versions(packages: Sequence[str]) -> dict[str, str]:
  """Versions of Python and of those packages that are installed."""
  found = {"python": platform.python_version()}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def of_hardware(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  device = mesh.devices.flat[0]
  return {
    "device": f"{device.device_kind} ({device.platform})",
    "mesh": dict(mesh.shape),
    "machine": platform.machine(),
  }


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files_below(path)
    else:
      yield path
