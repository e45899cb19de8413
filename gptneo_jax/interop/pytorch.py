"""The only code that runs PyTorch: reading its pickled weights, and its forward pass to compare.

torch is an extra (`pip install "gptneo_jax[torch]"`): nothing imports this module before a file or
a command that cannot do without it.
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
  """The tensors of a pytorch_model.bin by name, mapped from the file where its format allows.

  Raises UserError if the file is damaged, or holds anything but tensors: it is unpickled without
  running code.
  """
  torch = _torch(str(path))
  state = None
  try:
    try:
      state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written before PyTorch 1.6, which cannot be mapped
      state = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f"{path} is refused: it is damaged, or holds code beside the weights: {_reason(error)}"
    ) from None
  except Exception as error:  # zip errors, end of file, and whatever else damage leads to
    raise UserError(f"{path} is damaged or no PyTorch file: {_reason(error)}") from None
  tensors = {}
  for name, tensor in _state_dict(torch, state, path).items():
    dtype = _numpy_dtype(torch, tensor.dtype)
    if dtype is None or tensor.layout != torch.strided:
      kind = tensor.dtype if dtype is None else tensor.layout
      raise UserError(f"{path}: {name} is stored as {kind}, which is not supported")
    tensor = tensor.detach()  # a Parameter's values cannot be taken otherwise
    tensors[name] = Tensor(tuple(tensor.shape), dtype, path, _reader(torch, tensor, dtype))
  return tensors


def _state_dict(torch, state: Any, path: pathlib.Path) -> dict[str, Any]:
  """The table of tensors by name: what was saved, or the one such entry of what was saved."""

  def is_table(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(t, torch.Tensor) for t in x.values())

  if is_table(state):
    return state
  entries = state if isinstance(state, dict) else {}
  tables = [key for key, value in entries.items() if is_table(value) and value]
  if len(tables) == 1:
    _log.warning("%s: the weights are taken from its entry %r", path, tables[0])
    return entries[tables[0]]
  holds = f" (it holds {', '.join(map(str, entries))[:200]})" if entries else ""
  raise UserError(
    f"{path} is no table of tensors by name{holds}: save the model's state_dict() alone"
  )


def _reader(torch, tensor, dtype: np.dtype):
  def read() -> np.ndarray:
    if dtype == ml_dtypes.bfloat16:  # which PyTorch does not give to NumPy
      return tensor.contiguous().view(torch.int16).numpy().view(dtype)
    return tensor.numpy()

  return read


def _numpy_dtype(torch, dtype) -> np.dtype | None:
  names = ("float64", "float32", "float16", "int64", "int32", "uint8")
  known = {getattr(torch, name): np.dtype(name) for name in names}
  known |= {torch.bfloat16: np.dtype(ml_dtypes.bfloat16), torch.bool: np.dtype(np.bool_)}
  return known.get(dtype)


def _reason(error: Exception) -> str:
  """What torch found, without its advice to unpickle anyway."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
  return (telling or lines or [type(error).__name__])[0][:200]


def reference_outputs(
  folder: pathlib.Path, class_name: str, ids_BxT: np.ndarray, mask_BxT: np.ndarray
) -> list[list[np.ndarray]]:
  """What transformers computes with eager attention in float32, row by row.

  Args:
    folder: a Hugging Face model.
    class_name: of transformers, with the head.
    ids_BxT, mask_BxT: int32; mask 0 on padding, from behind which positions count.

  Returns:
    for each row its outputs, float32: B lists of arrays with a leading axis of 1, the loss and
    caches left out.

  Raises:
    UserError: no torch, or transformers does not find all weights.
  """
  torch = _torch("verify")
  import transformers

  model, found = getattr(transformers, class_name).from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  if found["missing_keys"]:  # which transformers makes at random
    raise UserError(
      f"{folder}: transformers finds no {min(found['missing_keys'])} there, and would compute with"
      " one at random; convert back with orbax-to-hf, and verify with that folder"
    )
  model.eval()
  # Unscaled attention scores lead to probabilities below 1e-38, with which CPUs are up to fifty
  # times slower; XLA takes them for 0 too.
  torch.set_flush_denormal(True)
  rows = []
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
  torch.set_flush_denormal(False)
  return rows


def versions() -> dict[str, str]:
  """Versions of what the reference is computed with."""
  import transformers

  return {"torch": _torch("verify").__version__, "transformers": transformers.__version__}
