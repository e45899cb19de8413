"""What the programs share: flags that teach, and one line for a mistake instead of a traceback."""

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
import types
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from gptneo_jax import run_config
from gptneo_jax.errors import UserError, did_you_mean, out_of_memory

_CACHE_BYTES = 4 << 30  # of compiled programs; those not used for longest go first

# 128 + the signal, as a shell reports what a signal ended.
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # the reader of the output has gone


def run_with_config(main: Callable[[ConfigDict], int | None], flag_values=flags.FLAGS) -> None:
  """Runs a program with --config; `main` gets the locked config and returns the exit status."""
  logging.set_verbosity(logging.WARNING)
  app.run(
    lambda _: _guarded(lambda: main(flag_values.config)),
    flags_parser=lambda argv: _guarded(lambda: _parse(argv, flag_values)),
  )


def guarded(main: Callable[[], int | None]) -> None:
  """Runs an argparse program to its exit status, mistakes as one line."""
  sys.exit(_guarded(main))


class Parser(argparse.ArgumentParser):
  """argparse's, of which a mistake is a UserError that names the flag which may be meant."""

  def __init__(self, **options):
    super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

  def parse_known_args(self, args=None, namespace=None):
    """A parser of its own has each command of a program: none leaves unknown flags to another."""
    namespace, rest = super().parse_known_args(args, namespace)
    for action in self._actions:
      # What a shell leaves of --output=~/x: values named as paths are expanded, texts are not.
      if re.match("DIR|FILE|SRC|DST|GLOB|TRAIN_GLOB", str(action.metavar)):
        setattr(namespace, action.dest, _expanded(getattr(namespace, action.dest, None)))
    if rest:
      self.error(_unknown(rest[0], [flag.lstrip("-") for flag in self._option_string_actions]))
    return namespace, rest

  def error(self, message: str) -> NoReturn:
    raise UserError(message)


def _expanded(value):
  """A path, or several, with the home for `~`."""
  if isinstance(value, list):
    return [_expanded(path) for path in value]
  return os.path.expanduser(value) if isinstance(value, str) else value


def seed(text: str) -> int:
  """argparse's type of a --seed: random keys are made of 32 bits."""
  if not text.isdecimal() or int(text) >= 2**32:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
  return int(text)


def _unknown(argument: str, flag_names: Sequence[str]) -> str:
  if not argument.startswith("-"):
    return f"unexpected argument {argument!r}"
  name = argument.lstrip("-").partition("=")[0]
  return f"unknown flag --{name}{did_you_mean(name, flag_names, '--{}')}"


def _guarded(function):
  _escape_what_cannot_be_shown()
  _pass_over_absent_tpu()
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
    if said := out_of_memory(error):
      print(
        f"error: out of memory: {said}. Fewer or shorter rows at a time need less, 16-bit weights"
        " (--dtype bfloat16) half; python -m gptneo_jax.plan says what a model needs",
        file=sys.stderr,
      )
      sys.exit(1)
    if not _is_of_platforms(error):
      raise
    asked = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
    why = str(error).splitlines()[0] if str(error) else "JAX has no plugin for it here"
    print(
      f"error: JAX cannot start{f' JAX_PLATFORMS={asked}' if asked else ''}: {why}; without the"
      " variable JAX takes what is there; gptneo_jax[gpu] and gptneo_jax[tpu] bring the plugins",
      file=sys.stderr,
    )
    sys.exit(1)


def _is_of_platforms(error: Exception) -> bool:
  """Whether JAX raised this in starting the platform that it was told to take."""
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and pathlib.Path(frames[-1].filename).name == "xla_bridge.py"


def _escape_what_cannot_be_shown() -> None:
  """Has characters that a terminal's encoding lacks written as JSON writes them: \\u23f5.

  Text is readable with it, and JSON stays JSON. Bytes of standard input that are no text in its
  encoding are an error and do not become half characters, whatever the locale.
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
  """Whether standard output or error has no reader; what is buffered of it then goes nowhere."""
  closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream.fileno())]
  for stream in closed:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  return bool(closed)


def _is_closed(descriptor: int) -> bool:
  poll = select.poll()
  poll.register(descriptor, 0)
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _pass_over_absent_tpu() -> None:
  """Takes the CPU where TPU's compiler is installed, for `plan` and the tests, and nothing else is.

  JAX would look for a TPU first, with several lines of complaint on standard error.
  """
  there = lambda name: importlib.util.find_spec(name) is not None  # noqa: E731
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  chosen = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
  if there("libtpu") and not devices and not there("jax_plugins") and not chosen:
    jax.config.update("jax_platforms", "cpu")


def _keep_compiled_programs() -> None:
  """Has XLA's programs kept from one process to the next, in the user's cache folder."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  jax.config.update("jax_compilation_cache_dir", os.path.join(home, "gptneo_jax"))
  jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


def config_path(flag_values=flags.FLAGS) -> str:
  """What --config was given: 'configs/neo_1p3b.py', with ':runlocal' if that stood there."""
  return config_flags.get_config_filename(flag_values["config"])


def config_name(flag_values=flags.FLAGS) -> str:
  """'neo_1p3b' of --config configs/neo_1p3b.py, 'neo_1p3b-runlocal' with that argument."""
  path, _, arg = config_path(flag_values).partition(":")
  return pathlib.Path(path).stem + (f"-{arg}" if arg else "")


def _parse(argv: Sequence[str], flag_values) -> list[str]:
  """Parses flags; a mistake is a UserError that names the flag and the nearest right one."""
  argv = list(argv)
  if {"-h", "--help", "-help", "--helpshort"} & set(argv):
    app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own ends with 1
  at = _place_of_config(argv)
  if at is None:
    raise UserError("no --config; for example: --config configs/tiny.py (see --help)")
  flag, equals, value = argv[at].partition("=") if argv[at][:1] == "-" else ("", "", argv[at])
  settings = run_config.flat(load_config(value))
  _check_settings(argv, settings)
  argv[at] = f"{flag}{equals}{_with_file(value)}"
  try:
    rest = flag_values(argv)
  except flags.UnrecognizedFlagError as error:
    names = [*flag_values, *(f"config.{setting}" for setting in settings)]
    raise UserError(_unknown(f"--{error.flagname}", names)) from None
  except (flags.Error, ValueError, TypeError) as error:
    raise UserError(_last_line(error)) from None
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; settings are --config.name=value")
  return rest


def _place_of_config(argv: Sequence[str]) -> int | None:
  """Which argument holds the value of --config, None if it is not there."""
  for number, arg in enumerate(argv[1:], 1):
    if arg in ("-config", "--config"):
      return number + 1 if number + 1 < len(argv) else None
    if arg.startswith(("-config=", "--config=")):
      return number
  return None


def load_config(value: str) -> ConfigDict:
  """The config as its file gives it. Raises UserError if there is no such file, or if it fails."""
  path, colon, arg = _with_file(value).partition(":")
  module = types.ModuleType("config")
  try:
    importlib.machinery.SourceFileLoader("config", path).exec_module(module)
    config = module.get_config(*([arg] if colon else []))
  except Exception as error:  # whatever the file's own code raises
    raise UserError(_fault_in_config(error, path)) from None
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config returns {type(config).__name__}, not the config")
  try:
    run_config.check_keys(config)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  return config.lock()


def _with_file(value: str) -> str:
  """`value` with the path of a file: configs/NAME.py is the package's where there is none here."""
  value = os.path.expanduser(value)
  path, colon, arg = value.partition(":")
  if pathlib.Path(path).is_file():
    return value
  if colon and any(pathlib.Path(file).is_file() for file in (value, value.rpartition(":")[0])):
    raise UserError(
      f"--config {value}: a ':' divides a config's file from its argument and cannot be part of the"
      " path; move the file, or start in its folder"
    )
  ours, asked = pathlib.Path(__file__).parent / "configs", pathlib.Path(path)
  if asked.parent == pathlib.Path("configs") and (ours / asked.name).is_file():
    return f"{ours / asked.name}{colon}{arg}"
  there: list[str] = []
  for shown, folder in (
    (pathlib.Path(path).parent, pathlib.Path(path).parent),
    (pathlib.Path("configs"), pathlib.Path("configs")),
    (pathlib.Path("configs"), ours),
  ):
    names = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    if hint := did_you_mean(pathlib.Path(path).stem, names, str(shown / "{}.py")):
      raise UserError(f"no config file {path!r}{hint}")
    there += [str(shown / f"{name}.py") for name in names]
  raise UserError(f"no config file {path!r}; there are: {', '.join(dict.fromkeys(there))}")


def _fault_in_config(error: Exception, path: str) -> str:
  """What a config file's code raised, with the line of it and, for an unknown setting, the name."""
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
  if isinstance(error, SyntaxError):
    lines.append(error.lineno)
  where = f"{path}:{lines[-1]}" if lines else path
  other_type = re.search(r"override field '(\w+)' .* to type <class '(\w+)'>", str(error))
  if other_type is not None:
    name, kind = other_type.groups()
    example = ", such as 'bfloat16'" if name.endswith("dtype") else ""
    return f"{where}: {name} takes a value of type {kind}{example}"
  unknown = re.search(r'Key "(\w+)" does not exist', str(error))
  if unknown is None:
    return f"{where}: {_last_line(error)}"
  name = unknown[1]
  return f"{where}: unknown setting {name}{did_you_mean(name, run_config.known())}"


def _check_settings(argv: Sequence[str], valid: Collection[str]) -> None:
  """Raises UserError with the nearest valid name for a --config.key that does not exist."""
  for arg in argv:
    key = arg.lstrip("-").partition("=")[0]
    if not arg.startswith("-") or not key.startswith("config."):
      continue
    key = key.removeprefix("config.")
    if key not in valid:
      hint = did_you_mean(key, valid, "--config.{}")
      raise UserError(f"unknown setting --config.{key}{hint}")


def _last_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[-1]
