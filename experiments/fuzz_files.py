"""Damaged files: whatever their bytes are, they are read or refused in one line.

  python experiments/fuzz_files.py [--inputs 100000] [--seconds 300] [--only tfrecord,state]

Each reader gets up to `inputs` byte strings for up to `seconds`, in a process of its own: what a
small valid file becomes when bits are flipped, parts cut out, doubled, exchanged, and numbers
replaced. Then as many again that atheris makes, guided by coverage, where it is installed
(`pip install atheris`). Any other error than a UserError, and an input that takes more than ten
seconds, is a finding: it is printed, kept in the record, and the exit status is 1.
"""

import argparse
import collections
import concurrent.futures
import importlib.util
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

if sys.argv[1:2] == ["--guided"]:
  import atheris

  atheris.instrument_imports(include=["gptneo_jax"]).__enter__()

import bench
from fuzz_readers import Target, targets

from gptneo_jax.errors import UserError

_GUIDED = "--guided"  # first argument of a process that atheris guides
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_LONGEST = 10  # seconds that an input may take


# --- inputs ---------------------------------------------------------------------------------------

_WORDS = (b"-1", b"0", b"null", b"true", b"1e999", b"NaN", b"[]", b"{}", b'""', b"9" * 30, b"\xff",
          b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\r", b"\xff" * 8, b"[" * 99)  # fmt: skip


def changed(content: bytes, rng: random.Random) -> bytes:
  """The content with one to four changes."""
  made = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    start = rng.randrange(len(made) + 1)
    end = min(len(made), start + rng.choice([1, 1, 2, 4, 8, 30]))
    kind = rng.randrange(7)
    if kind == 0 and made:
      made[min(start, len(made) - 1)] ^= 1 << rng.randrange(8)
    elif kind == 1:
      del made[start:end]
    elif kind == 2:
      made[start:start] = made[start:end]
    elif kind == 3:
      made[start:end] = rng.choice(_WORDS)
    elif kind == 4:
      made[start:end] = rng.randbytes(end - start)
    elif kind == 5:
      del made[start:]
    else:
      other = rng.randrange(len(made) + 1)
      made[start:end] = made[other : other + rng.randint(1, 30)]
  return bytes(made)


class Findings:
  """What became of the inputs of one reader."""

  def __init__(self, target: Target):
    self._target = target
    self.counts: collections.Counter = collections.Counter()
    self.findings: list[str] = []

  def give(self, content: bytes) -> None:
    try:
      self._target.read(content)
      self.counts["read"] += 1
    except UserError as error:
      self.counts["refused"] += 1
      assert "\n" not in str(error), f"several lines: {error}"
    except BaseException as error:
      self.counts["findings"] += 1
      if len(self.findings) < 5:
        self.findings.append(f"{type(error).__name__}: {error!s:.200} of {content[:300]!r}")


def _too_long(*_) -> None:
  raise TimeoutError(f"more than {_LONGEST} s")


def at_random(name: str, inputs: int, seconds: float) -> tuple[dict[str, int], list[str]]:
  """In this process: what became of the inputs of one reader, and the first findings."""
  signal.signal(signal.SIGALRM, _too_long)
  rng, until = random.Random(name), time.monotonic() + seconds
  with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
    target = targets(pathlib.Path(folder))[name]
    found, pool = Findings(target), list(target.seeds)
    for seed in target.seeds:
      target.read(seed)  # a valid one is read
    for _ in range(inputs):
      before = found.counts["read"]
      content = changed(rng.choice(pool), rng)
      signal.alarm(_LONGEST)
      found.give(content)
      signal.alarm(0)
      # What is still read is a seed too: changes add up.
      if found.counts["read"] > before and len(pool) < 2000 and len(content) < 5000:
        pool.append(content)
      if time.monotonic() > until:
        break
  return dict(found.counts), found.findings


def by_coverage(name: str, inputs: int, seconds: float) -> tuple[dict[str, int], list[str]]:
  """As at_random, in a process of its own, which atheris does not let return."""
  with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
    command = [sys.executable, __file__, _GUIDED, name, folder, str(inputs), str(int(seconds))]
    done = subprocess.run(command, capture_output=True, text=True)
    path = pathlib.Path(folder, "found.json")
    counts, findings = json.loads(path.read_text("utf-8")) if path.exists() else ({}, [])
    if done.returncode:
      findings.append(f"atheris ended with {done.returncode}: {done.stderr[-500:]}")
  return counts, findings


def _guided(name: str, folder: str, inputs: str, seconds: str) -> None:
  """The process of by_coverage; atheris has been given the modules already."""
  root = pathlib.Path(folder)
  for part in ("files", "corpus"):
    (root / part).mkdir()
  target = targets(root / "files")[name]
  for number, seed in enumerate(target.seeds):
    (root / "corpus" / str(number)).write_bytes(seed)
  found = Findings(target)

  def give(content: bytes) -> None:
    found.give(content)
    total = sum(found.counts.values())
    if total % 500 == 0 or found.counts["findings"]:
      (root / "found.json").write_text(json.dumps([found.counts, found.findings]))

  limits = [f"-runs={inputs}", f"-max_total_time={seconds}", f"-timeout={_LONGEST}"]
  atheris.Setup([__file__, *limits, "-max_len=4096", str(root / "corpus")], give)
  atheris.Fuzz()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--inputs", type=int, default=100_000)
  parser.add_argument("--seconds", type=int, default=300)
  parser.add_argument("--only", default="")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    names = args.only.split(",") if args.only else list(targets(pathlib.Path(folder)))
  ways = {"at random": at_random}
  if importlib.util.find_spec("atheris"):
    ways["by coverage"] = by_coverage
  results, findings = {}, []
  with concurrent.futures.ProcessPoolExecutor(2) as pool:
    running = {
      (name, way): pool.submit(run, name, args.inputs, args.seconds)
      for name in names
      for way, run in ways.items()
    }
    for (name, way), one in running.items():
      counts, found = one.result()
      results.setdefault(name, {})[way] = counts
      print(f"{name}, {way}: {counts}", *found, sep="\n  ", flush=True)
      findings += [f"{name}: {finding}" for finding in found]
  total = sum(sum(counts.values()) for ways in results.values() for counts in ways.values())
  bench.record("fuzz_files", {"inputs": total, "readers": results, "findings": findings})
  return int(bool(findings))


if __name__ == "__main__":
  logging.disable(logging.WARNING)
  if sys.argv[1:2] == [_GUIDED]:
    _guided(*sys.argv[2:])
  sys.exit(main())
