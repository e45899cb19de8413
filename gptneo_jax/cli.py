"""Command-line plumbing of all programs: flags, errors in one line, exit status, progress.

Unknown flags are errors with a suggestion; a UserError is printed without a traceback. A program
that is of one process says so where a launcher has started several.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import glob
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import tqdm

from gptneo_jax.errors import UserError, did_you_mean, first_line, out_of_memory

_CACHE_BYTES = 4 << 30  # of compiled programs; the least recently used are deleted first

# 128 + the signal, as a shell reports what a signal ended.
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # the reader of the output has exited


def guarded(main: Callable[[], int | None]) -> None:
  """Runs an argparse program and exits with its status; errors are one line."""
  sys.exit(one_line_errors(main))


class Parser(argparse.ArgumentParser):
  """argparse's parser, but errors are a UserError that suggests the nearest flag.

  Unless the program can be one of several processes, it is refused where it is: before it uses a
  device, which on one host of a TPU slice would wait for the other hosts.
  """

  def __init__(self, *, of_one_process: bool = True, **options):
    super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
    self._of_one_process = of_one_process

  def parse_args(self, args=None, namespace=None):
    parsed = super().parse_args(args, namespace)
    if self._of_one_process:
      require_one_process(self.prog)
    return parsed

  def parse_known_args(self, args=None, namespace=None):
    """Refuses unknown flags: each command has a parser of its own, and none passes them on."""
    namespace, rest = super().parse_known_args(args, namespace)
    for action in self._actions:
      # A shell does not expand --output=~/x. Values that are named as paths are, texts are not.
      if re.match("DIR|FILE|SRC|DST|GLOB|TRAIN_GLOB", str(action.metavar)):
        setattr(namespace, action.dest, _expanded(getattr(namespace, action.dest, None)))
    if rest:
      self.error(unknown_flag(rest[0], [flag.lstrip("-") for flag in self._option_string_actions]))
    return namespace, rest

  def error(self, message: str) -> NoReturn:
    raise UserError(message)


def _expanded(value):
  """A path, or a list of them, with `~` expanded."""
  if isinstance(value, list):
    return [_expanded(path) for path in value]
  return os.path.expanduser(value) if isinstance(value, str) else value


def seed(text: str) -> int:
  """argparse's type of --seed: random keys are made from 32 bits."""
  if not text.isdecimal() or int(text) >= 2**32:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
  return int(text)


def unknown_flag(argument: str, flag_names: Sequence[str]) -> str:
  if not argument.startswith("-"):
    return f"unexpected argument {argument!r}"
  name = argument.lstrip("-").partition("=")[0]
  return f"unknown flag --{name}{did_you_mean(name, flag_names, '--{}')}"


def one_line_errors(function):
  """The result of `function`; if it raises an error that a user can fix, exits with one line."""
  _escape_unencodable()
  _ignore_absent_tpu()
  _keep_compiled_programs()
  try:
    with contextlib.ExitStack() as closing:
      closing.callback(sys.stdout.flush)
      return function()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(EXIT_INTERRUPTED)
  except BrokenPipeError:
    if not _silence_closed():
      raise  # a connection of another kind
    sys.exit(EXIT_CLOSED_PIPE)
  except (RuntimeError, AssertionError) as error:
    if reason := out_of_memory(error):
      print(
        f"error: out of memory: {reason}. Fewer or shorter rows at a time need less, 16-bit weights"
        " (--dtype bfloat16) half; python -m gptneo_jax.plan says what a model needs",
        file=sys.stderr,
      )
      sys.exit(1)
    if not _is_of_platforms(error):
      raise
    asked = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
    why = first_line(error) if str(error) else "JAX has no plugin for it here"
    print(
      f"error: JAX cannot start{f' JAX_PLATFORMS={asked}' if asked else ''}: {why}; without the"
      " variable JAX takes what is there; gptneo_jax[gpu] and gptneo_jax[tpu] bring the plugins",
      file=sys.stderr,
    )
    sys.exit(1)


def _is_of_platforms(error: Exception) -> bool:
  """Whether JAX raised this while starting the platform that it was told to use."""
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and pathlib.Path(frames[-1].filename).name == "xla_bridge.py"


def _escape_unencodable() -> None:
  """Writes characters that the terminal's encoding lacks as JSON's escapes: \\u23f5.

  Text stays readable, and JSON stays JSON. Bytes of standard input that are invalid in its encoding
  are an error and do not become surrogates, whatever the locale.
  """
  codecs.register_error("json", _json_escapes)
  for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "json"), (sys.stderr, "json")):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors=errors)


def _json_escapes(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  text = error.object[error.start : error.end]
  return json.dumps(text)[1:-1], error.end


def _silence_closed() -> bool:
  """Whether standard output or error has no reader; if so, its buffer is discarded."""
  closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream.fileno())]
  for stream in closed:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  return bool(closed)


def _is_closed(descriptor: int) -> bool:
  poll = select.poll()
  poll.register(descriptor, 0)
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _ignore_absent_tpu() -> None:
  """Uses the CPU if TPU's compiler is installed (for `plan` and the tests) without a TPU.

  JAX would look for a TPU first, with several lines of errors on standard error.
  """
  there = lambda name: importlib.util.find_spec(name) is not None
  chosen = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
  if there("libtpu") and not _tpu_files() and not there("jax_plugins") and not chosen:
    jax.config.update("jax_platforms", "cpu")


def _keep_compiled_programs() -> None:
  """Keeps XLA's compiled programs in the user's cache folder for the next process."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  jax.config.update("jax_compilation_cache_dir", os.path.join(home, "gptneo_jax"))
  jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


# --- several processes ----------------------------------------------------------------------------

# Variables with the number of processes that a launcher has started, and how it starts one alone.
# Of SLURM's job step: SLURM_NTASKS is there too for a program that no srun has started.
_LAUNCHERS = {
  "SLURM_STEP_NUM_TASKS": "srun --ntasks=1",
  "OMPI_COMM_WORLD_SIZE": "mpirun -n 1",
  "PMI_SIZE": "mpirun -n 1",
}


def one_of_several() -> bool:
  """True where this process is one of several, or may be, by what its launcher has left here."""
  if any(_number(name) > 1 for name in _LAUNCHERS) or _tpu_hosts_of_environment() > 1:
    return True
  # A Cloud TPU machine knows its slice from its metadata server; Colab's and Kaggle's have none.
  return _on_tpu() and not {"COLAB_RELEASE_TAG", "TPU_SKIP_MDS_QUERY"} & os.environ.keys()


def require_one_process(program: str, instead: str = "", *, devices: bool = True) -> None:
  """Raises UserError where a launcher has started a program several times.

  program: the command. instead: what else can be done about it. devices: whether it uses them: then
  also on one of several hosts of a TPU slice, whose devices start only together.
  """
  for name, once in _LAUNCHERS.items():
    if (started := _number(name)) > 1:
      raise UserError(
        f"{program} is of one process, and {started} of it have been started ({name}); run it once:"
        f" {once} {program} …{instead}"
      )
  platforms = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
  if not devices or platforms == "cpu" or os.environ.get("TPU_PROCESS_BOUNDS") == "1,1,1":
    return
  if (hosts := _tpu_hosts()) > 1:
    raise UserError(
      f"{program} is of one process, and the TPU of this machine starts only together with those of"
      f" all {hosts} hosts of its slice; run it on a TPU of one host, or on one host without the"
      f" TPU: JAX_PLATFORMS=cpu {program} …"
    )


def _number(variable: str) -> int:
  text = os.environ.get(variable, "")
  return int(text) if text.isdecimal() else 1


def _on_tpu() -> bool:
  return bool(importlib.util.find_spec("libtpu") and _tpu_files())


def _tpu_files() -> list[str]:
  return glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")


def _tpu_hosts_of_environment() -> int:
  """Hosts of the TPU slices of this job, as GKE's variables say it; 1 where they do not."""
  lists = (os.environ.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
  in_slice = max(1 + text.count(",") for text in lists)
  return in_slice * max(_number("MEGASCALE_NUM_SLICES"), 1)


def _tpu_hosts() -> int:
  """The same, or as the metadata server of a Cloud TPU machine says it."""
  if (hosts := _tpu_hosts_of_environment()) > 1 or not _on_tpu():
    return hosts
  from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster  # as jax.distributed asks it

  try:
    return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1
  except (OSError, RuntimeError, ValueError, ImportError):  # no server, or not such a machine
    return 1


# --- progress -------------------------------------------------------------------------------------

_SECONDS = 30.0  # between two lines


def progress_bar(**options: Any) -> tqdm.tqdm:
  """A progress bar with tqdm's options on standard error; lines if that is not a terminal."""
  return tqdm.tqdm(**options) if sys.stderr.isatty() else _Lines(**options)


class Bar:
  """A progress bar for functions that say how much is done of what; it appears when they do."""

  def __init__(self, **options: Any):
    """options: tqdm's."""
    self._options = options

  def __enter__(self) -> Bar:
    self._bar: tqdm.tqdm | None = None
    return self

  def at(self, done: int, total: int) -> None:
    if self._bar is None:
      self._bar = progress_bar(total=total, **self._options)
    self._bar.update(done - self._bar.n)

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.close()


class _Lines(tqdm.tqdm):
  """Progress without a terminal: lines, no carriage returns, and none before something is done."""

  def __init__(self, **options: Any):
    self._shown = options.get("initial", 0)
    options |= {"mininterval": _SECONDS, "maxinterval": _SECONDS, "miniters": 1, "ncols": 0}
    super().__init__(file=sys.stderr, **options)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    if self.n != self._shown and self.format_dict["elapsed"] >= self.delay:
      self._shown = self.n
      print(self, file=self.fp, flush=True)

  def clear(self, *_: Any, **__: Any) -> None:
    """Printed lines cannot be cleared."""

  def close(self) -> None:
    if not self.disable:
      self.display()
      self.leave = False  # no line end after it
    super().close()
