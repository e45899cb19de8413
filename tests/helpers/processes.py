"""Programs of this folder in a process of their own, with the devices that they need."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.helpers import HELPERS, compiling


def found_on_eight_devices(script: str, xla_flags: str = "") -> Any:
  """The JSON in the last line that a program prints, run on eight devices of the CPU.

  xla_flags: in place of those of `compiling.QUICKLY` that they name.
  """
  environment = os.environ | compiling.on_devices(8)
  environment["XLA_FLAGS"] += f" {xla_flags}"
  environment["PYTHONPATH"] = str(HELPERS.parent.parent)  # they import one another
  done = subprocess.run(
    [sys.executable, HELPERS / script], env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])
