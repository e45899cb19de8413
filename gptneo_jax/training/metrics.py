"""What a run writes of its steps: metrics.jsonl, TensorBoard's events, and wandb if asked.

Keys, fixed because scripts rely on them: `train/{loss,grad_norm,learning_rate}`,
`eval/{loss,perplexity,bits_per_byte}` (nats per token; the same with `/SUBSET` appended),
`data/epoch` (passes over the data), and
`perf/{tokens_per_second,step_seconds,eval_seconds,mfu,data_wait_fraction,memory_gib}`.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any, TextIO, cast

import fsspec

from gptneo_jax.errors import UserError, first_line

# Object stores cannot append: there all of the file is written again, not more often than this.
_REMOTE_SECONDS = 30.0

_log = logging.getLogger(__name__)


class MetricWriter:
  """Writes metrics to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to wandb if asked.

  Each line of the file is one JSON object with `step` first, flushed at once. A value that is
  not finite is written as null: JSON has no NaN, and a string would break readers that expect
  numbers.
  """

  def __init__(
    self,
    folder: str,
    *,
    resume_step: int | None = None,
    wandb_project: str | None = None,
    run: Mapping[str, Any] | None = None,
    enabled: bool = True,
  ):
    """Opens the files; what an earlier process wrote past `resume_step` is removed.

    Args:
      folder: local, or a URL that fsspec knows.
      resume_step: the last step whose line is kept; None is a run from scratch and keeps nothing.
      wandb_project: log there too, resuming the wandb run that this folder began.
      run: what wandb shows of the run: its settings, versions and command.
      enabled: False in all processes but one; then nothing is written anywhere.

    Raises:
      UserError: wandb is asked for and cannot be had.
    """
    self._enabled = enabled
    if not enabled:
      return
    folder = str(folder)
    self._wandb = _start_wandb(wandb_project, folder, resume_step, run) if wandb_project else None
    self._lines = _JsonLines(f"{folder}/metrics.jsonl", resume_step)
    self._events = _Events(f"{folder}/tensorboard", 0 if resume_step is None else resume_step + 1)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line. Values are anything `float` takes: numbers, or arrays of one element."""
    if not self._enabled:
      return
    values = {key: float(value) for key, value in metrics.items()}
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    self._lines.append({"step": int(step), **finite})
    self._events.add(step, values)
    if self._wandb:
      self._wandb.log(values, step=step)

  def close(self) -> None:
    """Writes out what is still in memory; nothing is written afterwards."""
    if not self._enabled:
      return
    self._enabled = False
    self._lines.close()
    self._events.close()
    if self._wandb:
      self._wandb.finish()


class _Events:
  """TensorBoard's file of events; for an object store it is written here and copied there."""

  def __init__(self, folder: str, purge_step: int):
    import tensorboardX  # imports torch where that is installed: over a second, so not at start-up

    self._folder, self._here = folder, None  # where they are written before they are copied
    self._copied_at = time.monotonic()
    if "://" in folder:
      self._here = tempfile.TemporaryDirectory()
    self._writer = tensorboardX.SummaryWriter(
      self._here.name if self._here else folder,
      purge_step=purge_step,
      filename_suffix=f".{uuid.uuid4().hex[:8]}",  # its own names differ by the second
    )

  def add(self, step: int, values: Mapping[str, float]) -> None:
    for key, value in values.items():
      self._writer.add_scalar(key, value, step)
    if self._here and time.monotonic() - self._copied_at > _REMOTE_SECONDS:
      self._writer.flush()
      self._copy(self._here.name)

  def _copy(self, here: str) -> None:
    fs, root = fsspec.core.url_to_fs(self._folder)
    fs.makedirs(root, exist_ok=True)
    for name in os.listdir(here):
      fs.put_file(os.path.join(here, name), f"{root}/{name}")
    self._copied_at = time.monotonic()

  def close(self) -> None:
    self._writer.close()
    if self._here:
      self._copy(self._here.name)
      self._here.cleanup()


class _JsonLines:
  """A file of one JSON object per line, opened to continue after `resume_step`."""

  def __init__(self, path: str, resume_step: int | None):
    self._path, self._local = path, "://" not in path
    if self._local:
      os.makedirs(os.path.dirname(path), exist_ok=True)
    lines = self._lines_up_to(resume_step)
    if self._local:
      # Renamed into place: a process killed here leaves the old file or the new one.
      with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
      os.replace(f"{path}.tmp", path)
      self._file = open(path, "a", encoding="utf-8", buffering=1)  # line by line
    else:
      self._all, self._written_at = lines, -math.inf

  def _lines_up_to(self, resume_step: int | None) -> list[str]:
    if resume_step is None:
      return []
    try:
      with _open(self._path, "r") as file:
        lines = file.readlines()
    except FileNotFoundError:
      return []
    kept = []
    for number, line in enumerate(lines, start=1):
      try:
        step = json.loads(line)["step"]
      except (ValueError, TypeError, KeyError):
        if number < len(lines):  # the last is torn when the process was killed writing it
          _log.warning("%s line %d is not a metrics line; removed", self._path, number)
        continue
      if step <= resume_step:
        kept.append(line.rstrip("\n") + "\n")
    return kept

  def append(self, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, allow_nan=False) + "\n"
    if self._local:
      self._file.write(line)
      return
    self._all.append(line)
    if time.monotonic() - self._written_at > _REMOTE_SECONDS:
      self._write_all()

  def _write_all(self) -> None:
    with _open(self._path, "w") as file:
      file.writelines(self._all)
    self._written_at = time.monotonic()

  def close(self) -> None:
    if self._local:
      self._file.close()
    else:
      self._write_all()


def _open(path: str, mode: str, **options: Any) -> contextlib.AbstractContextManager[TextIO]:
  # fsspec has no annotations, and what is inferred from its code is a list of files.
  return cast(contextlib.AbstractContextManager[TextIO], fsspec.open(path, mode, **options))


def check_wandb(project: str) -> None:
  """Raises UserError if a project is given and wandb is not installed."""
  if project and importlib.util.find_spec("wandb") is None:
    raise UserError(
      f"wandb_project is {project!r}, and wandb is not installed: pip install wandb, or leave"
      " wandb_project empty"
    )


def _start_wandb(
  project: str, folder: str, resume_step: int | None, run: Mapping[str, Any] | None
) -> Any:
  check_wandb(project)
  import wandb

  id_path = f"{folder}/wandb_run_id"
  run_id = None
  if resume_step is not None:
    with contextlib.suppress(FileNotFoundError), _open(id_path, "r") as file:
      run_id = file.read().strip()
  run_id = run_id or uuid.uuid4().hex
  with _open(id_path, "w", auto_mkdir=True) as file:
    file.write(run_id)
  try:
    return wandb.init(
      project=project,
      name=os.path.basename(folder.rstrip("/")),
      id=run_id,
      resume="allow",
      config=dict(run or {}),
      allow_val_change=True,  # a resumed run may have another learning rate
    )
  except Exception as error:  # no key, no network: wandb has its own
    raise UserError(f"wandb cannot be had: {first_line(error)}") from error
