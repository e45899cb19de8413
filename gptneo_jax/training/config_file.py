"""Programs with --config FILE.py, and --config.NAME=VALUE for any setting of it."""

from __future__ import annotations

import importlib.machinery
import os
import pathlib
import re
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import gptneo_jax
from gptneo_jax.cli import one_line_errors, unknown_flag
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.training import run_config


def run_with_config(main: Callable[[ConfigDict], int | None], flag_values=flags.FLAGS) -> None:
  """Runs a program with --config; `main` gets the locked config and returns the exit status."""
  logging.set_verbosity(logging.WARNING)
  app.run(
    lambda _: one_line_errors(lambda: main(flag_values.config)),
    flags_parser=lambda argv: one_line_errors(lambda: _parse(argv, flag_values)),
  )


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
  settings = run_config.flat(load(value))
  _check_settings(argv, settings)
  argv[at] = f"{flag}{equals}{_with_file(value)}"
  try:
    rest = flag_values(argv)
  except flags.UnrecognizedFlagError as error:
    names = [*flag_values, *(f"config.{setting}" for setting in settings)]
    raise UserError(unknown_flag(f"--{error.flagname}", names)) from None
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


def load(value: str) -> ConfigDict:
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
  ours, asked = pathlib.Path(gptneo_jax.__file__).parent / "configs", pathlib.Path(path)
  if asked.parts[:1] == ("configs",) and (found := ours.joinpath(*asked.parts[1:])).is_file():
    return f"{found}{colon}{arg}"
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


def _check_settings(argv: Sequence[str], settings: Mapping[str, Any]) -> None:
  """Raises UserError for a --config.key that does not exist, with the nearest that does, and for
  one that would have no effect."""
  given = set()
  for arg in argv:
    key = arg.lstrip("-").partition("=")[0]
    if not arg.startswith("-") or not key.startswith("config."):
      continue
    key = key.removeprefix("config.")
    if key not in settings:
      hint = did_you_mean(key, settings, "--config.{}")
      raise UserError(f"unknown setting --config.{key}{hint}")
    given.add(key)
  if "steps" in given and "epochs" not in given and settings["epochs"]:
    raise UserError(
      f"--config.steps has no effect: the config has {settings['epochs']:g} epochs; add"
      " --config.epochs=0"
    )


def _last_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[-1]
