"""One run that is killed every few minutes, and goes on with other processes and devices each time.

  python experiments/killed_run.py [--minutes 30] [--between 1.5 4] [--seed 0]

`configs/tiny.py` on the devices of this machine's CPU, of which one makes up to eight: killed at
random moments (SIGKILL of one of its processes, or SIGTERM), started again by the same command on
others. Says how many steps were done twice, and draws the loss: one curve, in which each step is
there once.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import bench
import numpy as np

from gptneo_jax.evals import pictures

LAYOUTS = ((1, 1), (1, 4), (2, 2), (1, 8), (4, 1), (2, 1))  # processes, devices of each
SETTINGS = {
  "batch_size": 8, "steps": 40_000, "schedule.decay_steps": 40_000, "data.num_streams": 8,
  "checkpoint_every": 50, "eval_every": 0, "log_every": 1, "eval.sample_tokens": 0,
  "eval.baselines": False,
}  # fmt: skip


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--minutes", type=float, default=30)
  parser.add_argument("--between", type=float, nargs=2, default=(1.5, 4), help="minutes of a start")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  chance, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
  with tempfile.TemporaryDirectory() as folder:
    workdir, starts = pathlib.Path(folder, "run"), []
    while time.monotonic() < end:
      layout = LAYOUTS[len(starts) % len(LAYOUTS)]
      seconds = min(60 * chance.uniform(*args.between), end - time.monotonic())
      last = time.monotonic() + seconds >= end
      number = signal.SIGTERM if last else chance.choice((signal.SIGKILL, signal.SIGTERM))
      starts.append(one_start(workdir, layout, seconds, number, chance))
      print(json.dumps(starts[-1]), flush=True)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open(encoding="utf-8")]
  steps = [line["step"] for line in lines]
  if steps != [*range(1, len(steps) + 1)]:
    sys.exit("a step is missing, or there twice")
  losses = [line["train/loss"] for line in lines]
  bench.record("killed_run", {"starts": starts, "steps": len(steps), **smoothness(losses, starts)})
  draw(pathlib.Path(__file__).with_name("killed_run.png"), losses, starts)


def one_start(workdir, layout, seconds: float, number: int, chance: random.Random) -> dict:
  """Starts the run, lets it go on for so long, and ends it by a signal to one of its processes."""
  before = steps_done(workdir)
  processes = start(workdir, *layout)
  until = time.monotonic() + seconds
  while time.monotonic() < until and all(process.poll() is None for process in processes):
    time.sleep(0.2)
  which = chance.randrange(len(processes))
  processes[which].send_signal(number)
  said = [process.communicate()[0] for process in processes]
  resumed = [line for line in said[0].splitlines() if line.startswith("resuming from step")]
  return {
    "processes": layout[0], "devices_of_each": layout[1],
    "from_step": int(resumed[0].split()[-1]) if resumed else 0,
    "steps_before": before, "steps": steps_done(workdir), "ended_by": signal.Signals(number).name,
    "statuses": [process.returncode for process in processes],
  }  # fmt: skip


def start(workdir, count: int, devices: int) -> list[subprocess.Popen]:
  settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
  command = [
    sys.executable, "-m", "gptneo_jax.train", "--config", "configs/tiny.py",
    f"--workdir={workdir}", *settings,
  ]  # fmt: skip
  flags = []
  if count > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--coordinator_address={address}", f"--num_processes={count}"]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
  }  # fmt: skip
  return [
    subprocess.Popen(
      [*command, *flags, *([f"--process_id={number}"] if flags else [])], env=environment,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for number in range(count)
  ]  # fmt: skip


def steps_done(workdir) -> int:
  file = workdir / "metrics.jsonl"
  return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


def smoothness(losses: list[float], starts: list[dict]) -> dict:
  """Mean loss of 50 steps after a start less that of 50 before, the largest of all starts; and the
  same of as many places where nothing happened."""
  at = lambda step: np.mean(losses[step : step + 50]) - np.mean(losses[step - 50 : step])
  places = [one["from_step"] for one in starts[1:] if 100 < one["from_step"] < len(losses) - 50]
  others = [step + 75 for step in places if step + 125 < len(losses)]
  return {
    "largest_change_at_a_start": max(map(abs, map(at, places)), default=0.0),
    "largest_change_elsewhere": max(map(abs, map(at, others)), default=0.0),
    "steps_done_twice": sum(one["steps_before"] - one["from_step"] for one in starts[1:]),
  }


def draw(path: pathlib.Path, losses: list[float], starts: list[dict]) -> None:
  with pictures.drawing(path, 1, width=9.0) as (axis,):
    steps = np.arange(1, len(losses) + 1)
    axis.plot(steps, losses, color=pictures.COLOURS[0], alpha=0.25, linewidth=0.6)
    axis.plot(steps, pictures.smoothed(losses, 50), color=pictures.COLOURS[0], label="loss")
    for number, one in enumerate(starts):
      axis.axvline(one["from_step"], color=pictures.GREY, linewidth=0.8, linestyle=":")
      text = f"{one['processes']} x {one['devices_of_each']}"
      axis.annotate(
        text, (one["from_step"], max(losses)), (2, -10 * (number % 4)), fontsize=7,
        textcoords="offset points",
      )  # fmt: skip
    axis.set(
      title="a run that is killed, and goes on with other processes x devices", xlabel="step",
      ylabel="nats per token",
    )  # fmt: skip


if __name__ == "__main__":
  main()
