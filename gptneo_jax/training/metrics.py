"""What a run writes of its steps: metrics.jsonl, TensorBoard's events, and wandb if asked.

Keys, fixed because scripts rely on them: `train/{loss,grad_norm,learning_rate}`, `train/skipped`
where steps are skipped, `eval/{loss,perplexity,bits_per_byte}` (nats per token; the same with
`/SUBSET` appended), `data/epoch` (passes over the data), and
`perf/{tokens_per_second,step_seconds,eval_seconds,mfu,data_wait_fraction,memory_gib}`.

None of the three ends a run: what cannot be written is said once, kept, and written later.
"""

import collections
import contextlib
import importlib.util
import json
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, cast

import fsspec

from gptneo_jax.errors import UserError, first_line
from gptneo_jax.training import events

# Object stores cannot append: there all of the file is written again, not more often than this.
_REMOTE_SECONDS = 30.0
_MOST_KEPT = 10_000  # lines that wait for a file, or a service, that is out of reach

_log = logging.getLogger(__name__)


class MetricWriter:
  """Writes metrics to FOLDER/metrics.jsonl and FOLDER/tensorboard, and to wandb if asked.

  Each line of the file is one JSON object with `step` first, written at once. A value that is
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
      UserError: wandb is asked for and is not installed, or refuses.
    """
    self._enabled = enabled
    if not enabled:
      return
    folder = str(folder)
    self._run: Any = None
    if wandb_project:
      self._run = _start_wandb(wandb_project, folder, resume_step, run)
    path, first = f"{folder}/metrics.jsonl", 0 if resume_step is None else resume_step + 1
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
    lines = _File(folder, "metrics.jsonl", lambda: _lines_up_to(path, resume_step))
    records = _File(folder, f"tensorboard/{name}", lambda: events.beginning(first))
    self._lines = _Sink("metrics.jsonl", lines.deliver)
    self._events = _Sink("the file of TensorBoard", records.deliver)
    self._logged = _Sink("wandb", self._log)

  def _log(self, waiting: collections.deque, last: bool) -> None:
    try:
      while waiting:
        step, values = waiting[0]
        self._run.log(values, step=step)
        waiting.popleft()
    finally:
      if last:
        self._run.finish()

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line. Values are anything `float` takes: numbers, or arrays of one element."""
    if not self._enabled:
      return
    values = {key: float(value) for key, value in metrics.items()}
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    line = json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n"
    self._lines.put(line.encode())
    self._events.put(events.scalars(step, values))
    if self._run:
      self._logged.put((step, values))

  def close(self) -> None:
    """Writes out what is still in memory; nothing is written afterwards."""
    if not self._enabled:
      return
    self._enabled = False
    self._lines.close()
    self._events.close()
    if self._run:
      self._logged.close()


class _Sink:
  """What is written to one place. Where that fails, it waits there for the next that comes."""

  def __init__(self, name: str, deliver: Callable[[collections.deque, bool], None]):
    """deliver: (what waits, whether this is the end): takes off the left what it has written."""
    self._name, self._deliver = name, deliver
    self._waiting: collections.deque = collections.deque()
    self._reason, self._lost = "", 0
    self._try()

  def put(self, entry: Any) -> None:
    if len(self._waiting) < _MOST_KEPT:
      self._waiting.append(entry)
    else:
      self._lost += 1
    self._try()

  def _try(self, last: bool = False) -> None:
    try:
      self._deliver(self._waiting, last)
    except Exception as error:  # whatever a file system or a service has; a run is worth more
      if not self._reason:
        _log.warning(
          "%s cannot be written: %s. The run goes on, and what is to be written waits",
          self._name,
          first_line(error),
        )
      self._reason = first_line(error)
    else:
      if self._reason:
        _log.warning("%s is written again", self._name)
      self._reason = ""

  def close(self) -> None:
    self._try(last=True)
    if missing := self._lost + len(self._waiting):
      reason = self._reason or "too many had to wait"
      _log.warning("%s lacks %d lines: %s", self._name, missing, reason)


class _File:
  """A file in a folder, or in one below it, that grows; local or at a URL."""

  def __init__(self, folder: str, name: str, begin: Callable[[], bytes]):
    """begin: what the file holds before anything is added."""
    self._within, self._path, self._local = folder, f"{folder}/{name}", "://" not in folder
    self._begin: Callable[[], bytes] | None = begin
    self._all, self._written_at = b"", -math.inf  # at a URL

  def deliver(self, waiting: collections.deque[bytes], last: bool) -> None:
    """Adds what waits; at a URL not before it is time. Raises what the file system raises."""
    if self._begin:
      self._all = self._begin()
      if self._local:
        _replace(self._path, self._all)
        self._all = b""
      self._begin = None
    if self._local:
      if os.path.isdir(self._within):  # it may have been removed, and made anew
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
      _append(self._path, waiting)
    elif last or (waiting and time.monotonic() - self._written_at > _REMOTE_SECONDS):
      self._written_at = time.monotonic()  # a failure takes its time too, and is not repeated soon
      whole = self._all + b"".join(waiting)
      with fsspec.open(self._path, "wb", auto_mkdir=True) as file:
        file.write(whole)  # pyrefly: ignore[missing-attribute]
      self._all = whole
    else:
      return
    waiting.clear()


def _replace(path: str, content: bytes) -> None:
  """Writes a local file; renamed: a process killed here leaves the old file or the new one."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(f"{path}.tmp", "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f"{path}.tmp", path)


def _append(path: str, waiting: Iterable[bytes]) -> None:
  """Adds to a local file all, or nothing. Opened each time: it may have been replaced."""
  left = memoryview(b"".join(waiting))
  if not left:
    return
  with open(path, "ab", buffering=0) as file:
    size = file.tell()
    try:
      while left:
        left = left[file.write(left) :]
    except OSError:
      with contextlib.suppress(OSError):
        file.truncate(size)  # a full disk may have taken a part
      raise


# --- metrics.jsonl --------------------------------------------------------------------------------


def _lines_up_to(path: str, resume_step: int | None) -> bytes:
  """The lines of a file that a resumed run keeps."""
  if resume_step is None:
    return b""
  try:
    with _open(path, "r") as file:
      lines = file.readlines()
  except FileNotFoundError:
    return b""
  kept = []
  for number, line in enumerate(lines, start=1):
    try:
      step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
      if number < len(lines):  # the last is torn when the process was killed writing it
        _log.warning("%s line %d is not a metrics line; removed", path, number)
      continue
    if step <= resume_step:
      kept.append(line.rstrip("\n") + "\n")
  return "".join(kept).encode()


def _open(path: str, mode: str, **options: Any) -> contextlib.AbstractContextManager[TextIO]:
  # fsspec has no annotations, and what is inferred from its code is a list of files.
  return cast(contextlib.AbstractContextManager[TextIO], fsspec.open(path, mode, **options))


# --- wandb ----------------------------------------------------------------------------------------


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

  def start(**options: Any) -> Any:
    return wandb.init(
      project=project,
      name=os.path.basename(folder.rstrip("/")),
      id=run_id,
      resume="allow",
      config=dict(run or {}),
      allow_val_change=True,  # a resumed run may have another learning rate
      **options,
    )

  try:
    try:
      return start()
    except (wandb.errors.CommError, OSError) as error:  # the network is away
      offline = start(mode="offline")
      _log.warning(
        "wandb is out of reach: %s. The run is kept for it here: wandb sync %s",
        first_line(error),
        os.path.dirname(offline.dir),
      )
      return offline
  except Exception as error:  # no key, a project that is not there: wandb has its own
    raise UserError(f"wandb cannot be had: {first_line(error)}") from error
