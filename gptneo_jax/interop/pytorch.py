"""The only code that uses PyTorch: reads its pickled weights, runs its forward pass for `verify`.

torch is an extra (`pip install "gptneo_jax[torch]"`): this module is imported only for a file or a
command that needs it.
"""

from __future__ import annotations

import logging
import pathlib
import pickle
from typing import Any

import ml_dtypes
import numpy as np

from gptneo_jax.errors import UserError
from gptneo_jax.interop.tensor import Tensor

_log = logging.getLogger(__name__)

_INSTALL = 'pip install "gptneo_jax[torch]"'


def _torch(need: str):
  try:
    import torch
  except ImportError:
    raise UserError(f"{need} needs PyTorch: {_INSTALL}") from None
  return torch


def open_bin(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a pytorch_model.bin by name, memory-mapped if its format allows.

  Raises UserError if the file is damaged or holds anything but tensors: unpickling runs no code
  from the file (`weights_only`).
  """
  torch = _torch(str(path))
  state = None
  try:
    try:
      state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # a file of PyTorch before 1.6 cannot be mapped
      state = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f"{path} is refused: it is damaged, or holds code as well as weights: {_reason(error)}"
    ) from None
  except Exception as error:  # damage raises many types: of zipfile, EOFError, …
    raise UserError(f"{path} is damaged or not a PyTorch file: {_reason(error)}") from None
  tensors = {}
  for name, tensor in _state_dict(torch, state, path).items():
    dtype = _numpy_dtype(torch, tensor.dtype)
    if dtype is None or tensor.layout != torch.strided:
      kind = tensor.dtype if dtype is None else tensor.layout
      raise UserError(f"{path}: {name} is stored as {kind}, which is not supported")
    tensor = tensor.detach()  # tensor.numpy() refuses a Parameter
    tensors[name] = Tensor(tuple(tensor.shape), dtype, path, _reader(torch, tensor, dtype))
  return tensors


def _state_dict(torch, state: Any, path: pathlib.Path) -> dict[str, Any]:
  """The dictionary of tensors by name: the saved object, or its only entry that is one."""

  def is_state_dict(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(t, torch.Tensor) for t in x.values())

  if is_state_dict(state):
    return state
  entries = state if isinstance(state, dict) else {}
  found = [key for key, value in entries.items() if is_state_dict(value) and value]
  if len(found) == 1:
    _log.warning("%s: the weights are read from its entry %r", path, found[0])
    return entries[found[0]]
  holds = f" (it holds {', '.join(map(str, entries))[:200]})" if entries else ""
  raise UserError(
    f"{path} is not a dictionary of tensors by name{holds}: save only the model's state_dict()"
  )


def _reader(torch, tensor, dtype: np.dtype):
  def read() -> np.ndarray:
    if dtype == ml_dtypes.bfloat16:  # which PyTorch cannot convert to NumPy
      return tensor.contiguous().view(torch.int16).numpy().view(dtype)
    return tensor.numpy()

  return read


def _numpy_dtype(torch, dtype) -> np.dtype | None:
  names = ("float64", "float32", "float16", "int64", "int32", "uint8")
  known = {getattr(torch, name): np.dtype(name) for name in names}
  known |= {torch.bfloat16: np.dtype(ml_dtypes.bfloat16), torch.bool: np.dtype(np.bool_)}
  return known.get(dtype)


def _reason(error: Exception) -> str:
  """The cause that torch names, without its advice to unpickle anyway."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
  return (telling or lines or [type(error).__name__])[0][:200]


def reference_outputs(
  folder: pathlib.Path, class_name: str, ids_BxT: np.ndarray, mask_BxT: np.ndarray
) -> list[list[np.ndarray]]:
  """Outputs of transformers with eager attention in float32, row by row.

  Args:
    folder: a Hugging Face model.
    class_name: of transformers' model with the head.
    ids_BxT, mask_BxT: int32; the mask is 0 on padding, and positions count from the first 1.

  Returns:
    each row's outputs, float32, without loss and caches: B lists of arrays with a leading axis of
    1.

  Raises:
    UserError: torch is not installed, or the folder lacks weights of that class.
  """
  torch = _torch("verify")
  import transformers

  model, found = getattr(transformers, class_name).from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  if found["missing_keys"]:  # transformers would initialize them randomly
    raise UserError(
      f"{folder}: transformers finds no {min(found['missing_keys'])} in it and would initialize it"
      " randomly; convert back with orbax-to-hf, and verify that folder"
    )
  model.eval()
  # Unscaled attention scores give probabilities below 1e-38, on which CPUs are up to fifty times
  # slower; XLA flushes them to 0 too.
  torch.set_flush_denormal(True)
  rows = []
  try:
    with torch.no_grad():
      for ids_T, mask_T in zip(ids_BxT, mask_BxT):
        mask = torch.from_numpy(mask_T[None].astype(np.int64))
        outputs = model(
          torch.from_numpy(ids_T[None].astype(np.int64)),
          attention_mask=mask,
          position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
          use_cache=False,
        )
        rows.append([tensor.numpy() for tensor in outputs.to_tuple()])
  finally:
    torch.set_flush_denormal(False)
  return rows


def versions() -> dict[str, str]:
  """Versions of the packages that compute the reference."""
  import transformers

  return {"torch": _torch("verify").__version__, "transformers": transformers.__version__}
