"""Programs of this folder in a process of their own, with the devices that they need."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.helpers import HELPERS

QUICK = "--xla_backend_optimization_level=0"  # where compiling is what takes the time


def found_on_eight_devices(script: str, flags: str = "") -> Any:
  """The JSON in the last line that a program prints, run on eight devices of the CPU.

  flags: more of XLA's.
  """
  flags = f"--xla_force_host_platform_device_count=8 {flags}"
  environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  environment["PYTHONPATH"] = str(HELPERS.parent.parent)  # they import one another
  done = subprocess.run(
    [sys.executable, HELPERS / script], env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])
