"""Training runs that are disturbed and started again until they end, beside one left alone.

`KINDS` are the ways to disturb a run; `campaign` runs them one after another. What is shown: each
run ends, by nothing but the same command given again, and then its weights, its optimizer and every
line of its metrics are those of the run that was left alone, bit for bit.
"""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.helpers import train_runs
from tests.helpers.crash_runs import PATIENCE, STEPS, Run

_STARTS = 4  # a disturbed run may need, beside the first
_ITEMS = ("params", "optimizer", "data")

# Dropout, so that the random state counts; a save at every other step, so that kills hit saves; and
# an evaluation, which a run that was stopped still owes.
SETTINGS = {
  "data__source": "jsonl",
  "data__validation_fraction": 0.1,
  "steps": STEPS,
  "schedule__decay_steps": STEPS,
  "checkpoint_every": 2,
  "eval_every": 6,
  "model__resid_dropout": 0.1,
}


class NotRecovered(AssertionError):
  """A run that did not end, or not as the one left alone."""


# --- ways to disturb a run: each starts it, and returns in words what it did ----------------------


def _start(run: Run, chance: random.Random) -> int:
  """Starts it and waits for a step, which is returned."""
  run.start()
  step = chance.randint(1, STEPS - 3)
  run.until_step(step)
  return step


def killed(run: Run, chance: random.Random) -> str:
  """At any moment, also while it starts or writes."""
  run.start()
  step = chance.randint(-2, STEPS - 1)
  run.until_step(step)
  delay = chance.uniform(0, 5) if step <= 0 else chance.uniform(0, 0.3)
  time.sleep(delay)
  run.send(signal.SIGKILL)
  run.wait()
  return f"SIGKILL {delay:.2f} s after step {max(step, 0)}"


def killed_while_saving(run: Run, chance: random.Random) -> str:
  run.start()
  step = chance.randint(1, STEPS - 3)
  run.until_saving(step)
  time.sleep(chance.uniform(0, 0.05))
  run.send(signal.SIGKILL)
  run.wait()
  return f"SIGKILL in a save after step {step}"


def terminated(run: Run, chance: random.Random) -> str:
  step = _start(run, chance)
  time.sleep(chance.uniform(0, 0.2))
  run.send(signal.SIGTERM)
  (status,) = run.wait()
  if status not in (0, 128 + signal.SIGTERM):
    raise NotRecovered(f"SIGTERM ended it with {status}: {run.said[-500:]}")
  return f"SIGTERM after step {step}"


def one_host_killed(run: Run, chance: random.Random) -> str:
  """The others end by themselves."""
  step, which = _start(run, chance), chance.randrange(run.hosts)
  time.sleep(chance.uniform(0, 0.2))
  run.send(signal.SIGKILL, which)
  statuses = run.wait()
  if 0 in statuses and run.steps_done() < STEPS:
    raise NotRecovered(f"a host of a run that had lost one ended with 0: {run.said[-500:]}")
  return f"SIGKILL of host {which} after step {step}"


def one_host_terminated(run: Run, chance: random.Random) -> str:
  """All save and stop together."""
  step, which = _start(run, chance), chance.randrange(run.hosts)
  run.send(signal.SIGTERM, which)
  statuses = run.wait()
  if len(set(statuses)) > 1 or statuses[0] not in (0, 128 + signal.SIGTERM):
    raise NotRecovered(f"SIGTERM of one host ended them with {statuses}: {run.said[-500:]}")
  return f"SIGTERM to host {which} after step {step}"


def truncated(run: Run, chance: random.Random) -> str:
  return _damaged(run, chance, 1, _truncate)


def flipped(run: Run, chance: random.Random) -> str:
  """One bit of one byte: the file has its length."""
  return _damaged(run, chance, 1, _flip)


def two_damaged(run: Run, chance: random.Random) -> str:
  return _damaged(run, chance, 2, chance.choice((_truncate, _flip)))


def _damaged(run: Run, chance: random.Random, count: int, damage: Callable) -> str:
  """Killed, and then something in its newest checkpoints is not as it was written."""
  shutil.copytree(run.interrupted, run.workdir)
  return ", ".join(damage(folder, chance) for folder in run.saved()[-count:])


def _truncate(checkpoint: pathlib.Path, chance: random.Random) -> str:
  path = _some_file(checkpoint, chance)
  size = chance.randrange(path.stat().st_size)
  os.truncate(path, size)
  return f"{path.relative_to(checkpoint.parent)} cut to {size} bytes"


def _flip(checkpoint: pathlib.Path, chance: random.Random) -> str:
  path = _some_file(checkpoint, chance)
  content = bytearray(path.read_bytes())
  place = chance.randrange(len(content))
  content[place] ^= 1 << chance.randrange(8)
  path.write_bytes(content)
  return f"a bit of byte {place} of {path.relative_to(checkpoint.parent)} flipped"


def _some_file(checkpoint: pathlib.Path, chance: random.Random) -> pathlib.Path:
  """One of those that hold the state, large ones as likely as small ones."""
  return chance.choice(
    sorted(
      path for item in _ITEMS for path in (checkpoint / item).rglob("*")
      if path.is_file() and path.stat().st_size and path.name != "commit_success.txt"
    )
  )  # fmt: skip


def disk_full(run: Run, chance: random.Random) -> str:
  """For some steps, or for good: then the run cannot be saved, and is started again with room."""
  step, seconds = _start(run, chance), chance.choice((0.2, 1.0, PATIENCE))
  if run.is_going():
    limit_files(run, 0)
    _wait(run, seconds)
    if run.is_going():
      limit_files(run, resource.RLIM_INFINITY)
  run.wait()
  return f"nothing could be written after step {step}, for {seconds} s"


def save_fails(run: Run, chance: random.Random) -> str:
  """A save that has been started fails in the background, and nothing after it."""
  run.start()
  step = chance.randint(1, STEPS - 3)
  run.until_saving(step)
  if run.is_going():
    limit_files(run, 0)
    time.sleep(0.1)
    limit_files(run, resource.RLIM_INFINITY)
  run.wait()
  return f"a save after step {step} failed"


def read_only(run: Run, chance: random.Random) -> str:
  """In the folder of the run nothing can be made, renamed or removed for a while."""
  step, seconds = _start(run, chance), chance.choice((0.2, 1.0, PATIENCE))
  _protect(run.workdir, True)
  _wait(run, seconds)
  _protect(run.workdir, False)
  run.wait()
  return f"read-only after step {step}, for {seconds} s"


def _protect(folder: pathlib.Path, protected: bool) -> None:
  """Takes the permission to write from a folder, or gives it back."""
  if os.geteuid():
    folder.chmod(0o555 if protected else 0o755)
  else:  # whom permissions do not bind
    subprocess.run(["chattr", "+i" if protected else "-i", folder], check=True)


def _wait(run: Run, seconds: float) -> None:
  """Waits so long, or until the run has ended."""
  until = time.monotonic() + seconds
  while run.is_going() and time.monotonic() < until:
    time.sleep(0.02)


def limit_files(run: Run, size: int) -> None:
  """No file of the run may grow past so many bytes."""
  for process in run.processes:
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))


def moved_away(run: Run, chance: random.Random) -> str:
  """The folder is gone; the run makes it anew, and its last checkpoint is there."""
  step = _start(run, chance)
  if run.is_going():
    run.workdir.rename(run.workdir.with_name("away"))
  run.wait()
  return f"the folder was removed after step {step}"


KINDS: dict[str, tuple[Callable[[Run, random.Random], str], int]] = {
  "killed": (killed, 1),
  "killed while saving": (killed_while_saving, 1),
  "SIGTERM": (terminated, 1),
  "one host of two killed": (one_host_killed, 2),
  "one host of two gets SIGTERM": (one_host_terminated, 2),
  "newest checkpoint truncated": (truncated, 1),
  "a bit of the newest flipped": (flipped, 1),
  "two newest damaged": (two_damaged, 1),
  "disk full": (disk_full, 1),
  "a save fails after its start": (save_fails, 1),
  "folder read-only": (read_only, 1),
  "folder removed": (moved_away, 1),
}


# --- the campaign ---------------------------------------------------------------------------------


class Campaign:
  """Disturbs runs in a folder of its own, and compares each with one left alone.

  settings: of all of them.
  """

  def __init__(self, folder: pathlib.Path, kind_of_run: type[Run] = Run, **settings: Any):
    """settings: other ones than `SETTINGS`."""
    self._folder, self._kind_of_run = folder, kind_of_run
    (folder / "texts").mkdir(parents=True)
    self._alone: dict[int, pathlib.Path] = {}
    self._lock = threading.Lock()
    path = train_runs.write_corpus(folder / "texts")
    self.settings = SETTINGS | {"data__path": path} | settings

  def alone(self, hosts: int) -> pathlib.Path:
    """The folder of a run that nothing happened to."""
    if hosts not in self._alone:
      run = self._run(f"alone_{hosts}", hosts)
      run.start()
      if any(run.wait()):
        raise NotRecovered(f"the run left alone failed: {run.said[-1000:]}")
      self._alone[hosts] = run.workdir
    return self._alone[hosts]

  def _interrupted(self) -> pathlib.Path:
    run = self._run("interrupted", 1)
    with self._lock:
      if not run.workdir.exists():
        run.interrupt()
    return run.workdir

  def _run(self, name: str, hosts: int) -> Run:
    return self._kind_of_run(self._folder / name / "run", self.settings, hosts)

  def disturb(self, kind: str, seed: int) -> dict[str, Any]:
    """One run; returns its kind and seed, what was done to it, and how often it was started again.

    Raises NotRecovered.
    """
    disturbance, hosts = KINDS[kind]
    expected = self.alone(hosts)
    run = self._run(f"{seed:04d}_{kind.replace(' ', '_')}", hosts)
    if disturbance in (truncated, flipped, two_damaged):
      run.interrupted = self._interrupted()
      run.workdir.parent.mkdir()
    done, starts = disturbance(run, random.Random(seed)), 0
    while not run.has_ended():
      if starts == _STARTS:
        raise NotRecovered(f"{kind}: {done}: not at its end: {run.said[-1000:]}")
      starts += 1
      run.start()
      run.wait()
    self._compare(run, expected, f"{kind}, seed {seed}: {done}", lines=kind != "folder removed")
    shutil.rmtree(run.workdir.parent)
    return {"kind": kind, "seed": seed, "done": done, "starts": starts}

  def _compare(self, run: Run, expected: pathlib.Path, what: str, *, lines: bool) -> None:
    if "Traceback" in run.said:
      raise NotRecovered(f"{what}: {run.said[-6000:]}")
    try:
      train_runs.assert_bitwise_equal(
        train_runs.arrays(run.workdir, STEPS), train_runs.arrays(expected, STEPS)
      )
    except AssertionError as error:
      raise NotRecovered(f"{what}: another end: {error}") from None
    if lines and _lines(run.workdir) != _lines(expected):
      raise NotRecovered(f"{what}: other metrics")


def _lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """What each step's line says, but for times."""
  return [
    {key: value for key, value in line.items() if not key.startswith("perf/")}
    for line in train_runs.metrics(workdir)
  ]


def schedule(kinds: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, int]]:
  """Kinds and seeds of so many runs, all kinds alike."""
  for number in range(count):
    yield kinds[number % len(kinds)], seed + number
