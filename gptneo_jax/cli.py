"""What the programs share: flags that teach, and one line for a mistake instead of a traceback."""

from __future__ import annotations

import glob
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from gptneo_jax.errors import UserError, did_you_mean

_CACHE_BYTES = 4 << 30  # of compiled programs; those not used for longest go first

EXIT_TERMINATED = 143  # 128 + SIGTERM, as a shell reports it: saved, and to be started again


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


def _guarded(function):
  _pass_over_absent_tpu()
  _keep_compiled_programs()
  try:
    return function()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
  sys.exit(1)


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
  value = _config_value(argv)
  if value is not None:
    _check_settings(argv, load_config(value))
  elif not any(arg.lstrip("-").startswith("help") for arg in argv):
    raise UserError("no --config; for example: --config configs/tiny.py (see --help)")
  try:
    rest = flag_values(argv)
  except (flags.Error, ValueError, TypeError) as error:
    raise UserError(_last_line(error)) from None
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; settings are --config.name=value")
  return rest


def _config_value(argv: Sequence[str]) -> str | None:
  for arg, following in zip(argv, [*argv[1:], None]):
    name, separator, value = arg.lstrip("-").partition("=")
    if arg.startswith("-") and name == "config":
      return value if separator else following
  return None


def load_config(value: str) -> ConfigDict:
  """The config as its file gives it. Raises UserError if there is no such file, or if it fails."""
  path = pathlib.Path(value.partition(":")[0])
  if not path.is_file():
    near = sorted(str(p) for p in path.parent.glob("*.py") if p.stem not in ("__init__", "common"))
    there = f"; there are: {', '.join(near)}" if near else ""
    raise UserError(f"no config file {str(path)!r}{there}")
  values, argv = flags.FlagValues(), ["program", f"--config={value}"]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values.config.lock()
  except Exception as error:  # whatever the file's own code raises
    raise UserError(f"--config {value}: {_last_line(error)}") from None


def _check_settings(argv: Sequence[str], config: ConfigDict) -> None:
  """Raises UserError with the nearest valid name for a --config.key that does not exist."""
  valid = list(_leaves(config))
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


def _leaves(config: ConfigDict, prefix: str = ""):
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield prefix + key
