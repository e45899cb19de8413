"""A training run that can be watched, signalled and started again: in processes, or in this one."""

import contextlib
import dataclasses
import io
import pathlib
import signal
import subprocess
import time
from typing import Any

from gptneo_jax import train
from tests.helpers import started_hosts, train_runs

STEPS = 18
PATIENCE = 300  # seconds in which a process has to end


@dataclasses.dataclass
class Run:
  """A run in a folder, of one process or of several. `InThisProcess` is one without.

  interrupted: the folder of one that was killed when it had several checkpoints.
  """

  workdir: pathlib.Path
  settings: dict[str, Any]
  hosts: int
  interrupted: pathlib.Path | None = None
  processes: list[subprocess.Popen] = dataclasses.field(default_factory=list)
  said: str = ""  # by all of its processes so far

  def start(self) -> None:
    command = train_runs.train_command(self.workdir, **self.settings)
    options = {
      "cwd": train_runs.REPOSITORY, "env": train_runs.environment(),
      "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
    }  # fmt: skip
    if self.hosts == 1:
      self.processes = [subprocess.Popen(command, **options)]
      return
    address = started_hosts.free_address()
    self.processes = [
      started_hosts.start(command, number, address, self.hosts, **options)
      for number in range(self.hosts)
    ]

  def interrupt(self) -> None:
    """Starts it and kills it when it has several checkpoints."""
    self.start()
    self.until_step(STEPS - 4)
    self.send(signal.SIGKILL)
    self.wait()

  def wait(self) -> list[int]:
    """The statuses of its processes, all of which end by themselves."""
    for process in self.processes:
      self.said += process.communicate(timeout=PATIENCE)[0]
    return [process.returncode for process in self.processes]

  def has_ended(self) -> bool:
    """Whether it is at its last step, and has said so."""
    return bool(self.processes) and not self.processes[0].returncode and "done: step" in self.said

  def until_step(self, step: int) -> None:
    """Waits until a step is in the metrics, or the run has ended."""
    while self.is_going() and self.steps_done() < step:
      time.sleep(0.01)

  def until_saving(self, step: int) -> None:
    """Waits until a save is under way, after a step; or the run has ended."""
    self.until_step(step)
    while self.is_going() and not list(self.workdir.glob("*.orbax-checkpoint-tmp*")):
      time.sleep(0.002)

  def is_going(self) -> bool:
    return all(process.poll() is None for process in self.processes)

  def steps_done(self) -> int:
    file = self.workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0

  def saved(self) -> list[pathlib.Path]:
    """Its checkpoints, the newest last."""
    steps = [path for path in self.workdir.glob("*") if path.name.isdecimal()]
    return sorted(steps, key=lambda path: int(path.name))

  def send(self, number: int, which: int = 0) -> None:
    self.processes[which].send_signal(number)


class InThisProcess(Run):
  """A run that takes less time to start, for what is done to its folder between two starts.

  `start` returns when it has ended.
  """

  def start(self) -> None:
    self._train(self.settings)

  def interrupt(self) -> None:
    """Does the first steps alone, and evaluates and saves as the whole run does at the last of
    them."""
    self._train(self.settings | {"steps": STEPS - 4})

  def _train(self, settings: dict[str, Any]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      train.run(train_runs.config(**settings), str(self.workdir))
    self.said += printed.getvalue()

  def has_ended(self) -> bool:
    return "done: step" in self.said
