"""The Hugging Face hub's cache as its library writes it: blobs, and snapshots that link to them."""

import hashlib
import pathlib

import huggingface_hub
import transformers.utils.hub


def write(cache, hub_id, commit, files, *refs):
  """A snapshot of a model, with branches or tags that are it; files: the folder that has them."""
  root = pathlib.Path(cache) / f"models--{hub_id.replace('/', '--')}"
  snapshot = root / "snapshots" / commit
  for folder in (root / "blobs", root / "refs", snapshot):
    folder.mkdir(parents=True, exist_ok=True)
  for file in pathlib.Path(files).iterdir():
    content = file.read_bytes()
    name = hashlib.sha256(content).hexdigest()
    (root / "blobs" / name).write_bytes(content)
    (snapshot / file.name).symlink_to(f"../../blobs/{name}")
  for ref in refs:
    (root / "refs" / ref).parent.mkdir(exist_ok=True)
    (root / "refs" / ref).write_text(commit)


def use(monkeypatch, cache):
  """Lets the library read this cache alone, without a network."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
