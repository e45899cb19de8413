"""The planner as a user runs it: its page, its verdict, and advice that is true when followed."""

import re
import shlex
import subprocess
import sys

import pytest

from gptneo_jax import plan as planner
from gptneo_jax.training import config_file
from tests.helpers import train_runs
from tests.helpers.topologies import needs_libtpu

pytestmark = pytest.mark.processes


def plan(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
  # With little effort for speed a step compiles in seconds; memory and collectives are the same.
  quick = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
  return subprocess.run(
    [sys.executable, "-m", "gptneo_jax.plan", *arguments],
    cwd=train_runs.REPOSITORY, env=train_runs.environment(devices) | quick,
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip


def small_model(**settings) -> list[str]:
  """neo_125m made thin, in heads that a TPU takes."""
  model = {"hidden_size": 256, "num_heads": 2, "num_layers": 4, "vocab_size": 1024}
  merged = {f"model.{name}": value for name, value in model.items()}
  merged |= {"seq_len": 512, "model.dtype": "bfloat16"} | settings
  return ["--config=configs/neo_125m.py", *(f"--config.{k}={v}" for k, v in merged.items())]


def value(page: str, row: str) -> float:
  """The first number of a row of the page."""
  found = re.search(rf"^  {row} +([\d.,e+-]+)", page, re.MULTILINE)
  assert found, page
  return float(found[1].replace(",", ""))


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ([], "no --config"),
    (["--config=configs/neo_13b.py"], "configs/neo_1p3b.py"),
    (["--config=configs/tiny.py", "--topology=v5e:3x3"], "there are v5e:1x1, v5e:2x2"),
    (
      ["--config=configs/tiny.py", "--topology=t4:4", "--config.mesh.data=8"],
      "mesh data=8, fsdp=1, tensor=1 is of 8 devices, and there are 4",
    ),
    (
      ["--config=configs/tiny.py", "--config.data.num_streams=3"],
      "data.num_streams 3 does not divide batch_size 8; data.num_streams=0 takes",
    ),
    pytest.param(
      ["--config=configs/neo_125m.py", "--topology=v5e:8x8", "--config.data.num_streams=8"],
      "data.num_streams 8 cannot be shared out among 16 hosts",
      marks=needs_libtpu,
    ),
  ],
)
def test_mistakes_are_one_line(arguments, expected):
  result = plan(*arguments)
  assert result.returncode == 1
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
  assert expected in result.stderr


def test_this_machine_is_estimated():
  result = plan("--config=configs/tiny.py")
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[-1].startswith("fits: ")
  assert "1,331,328 in float32" in result.stdout
  assert "Compiled" not in result.stdout and result.stderr == ""
  assert re.search(r"^fits: [\d.]+ [MG]iB needed", result.stdout.splitlines()[-1])
  assert "600 steps are 1,228,800 tokens" in result.stdout
  assert "1,228,800, 0.923 for each parameter" in result.stdout  # beside published runs
  assert "GPT-3's smallest" in result.stdout


def test_a_sharded_step_is_compiled_for_what_is_here():
  """8 devices of this machine: weights split over 4 of them are gathered, gradients summed."""
  fsdp = ["--config.batch_size=16", "--config.mesh.fsdp=4", "--config.grad_accumulation=2"]
  result = plan("--config=configs/tiny.py", "--topology=here", *fsdp, devices=8)
  assert result.returncode == 0, result.stderr
  page = result.stdout
  assert "mesh             data 2 x fsdp 4 x tensor 1" in page
  assert value(page, "all-gather") > 0 and value(page, "all-reduce") > 0
  tokens = 16 * 256 / 8
  assert value(page, "FLOPs") > 0.9 * tokens * value(page, "FLOPs per token")
  assert "global attention plain XLA" in page
  assert "compiling the step for here" in result.stderr  # progress is said, and not on the page
  assert page.splitlines()[-1].startswith("fits: ")


def test_advice_followed_makes_it_fit():
  """1.3B on one T4 cannot be trained as configured; as the printed commands say, it can."""
  result = plan("--config=configs/neo_1p3b.py", "--topology=t4:1", "--config.batch_size=64")
  assert result.returncode == 1 and result.stderr == ""
  *page, verdict = result.stdout.splitlines()
  assert verdict.startswith("does not fit: ") and "by estimate" in verdict
  assert any("a T4 has no bfloat16" in line for line in page)
  commands = [line.strip() for line in page if line.startswith("  python -m gptneo_jax.plan")]
  assert len(commands) == 2  # other settings there, or the same recipe on more of them
  assert all("--config.model.dtype=float32" in command for command in commands)
  to_train = [line.strip() for line in page if line.startswith("  python -m gptneo_jax.train")]
  assert [c.replace("_jax.train", "_jax.plan") for c in to_train] == [
    re.sub(" --topology=[^ ]+", "", command) for command in commands
  ]
  assert "--config.optimizer.name=adafactor" in commands[0]
  assert "--topology=t4:" in commands[1] and "adafactor" not in commands[1]
  for command in commands:
    followed = plan(*shlex.split(command)[3:])
    assert followed.returncode == 0, followed.stdout
    assert followed.stdout.splitlines()[-1].startswith("fits: ")


@needs_libtpu
def test_a_tpu_step_is_compiled_without_a_tpu():
  """Sharded over 8 chips, attention on splash kernels in global and local layers."""
  result = plan("--topology=v5e:2x4", *small_model(batch_size=16))
  assert result.returncode == 0, result.stdout + result.stderr
  page = result.stdout
  assert "8 x TPU v5 lite" in page and "data 1 x fsdp 8 x tensor 1" in page
  for kind in ("global", "local"):
    assert re.search(rf"^  {kind} +attention +splash \(tpu_custom_call\): .*fwd", page, re.M), page
  assert value(page, "peak") > value(page, "arguments") > 0  # both in MiB
  assert value(page, "all-gather") > 0
  assert re.search(r"^  step +[\d.]+ m?s, bound by (compute|memory|links): ", page, re.MULTILINE)
  assert re.match(r"fits: [\d.]+ MiB needed on each of 8 device\(s\), by the compiler's count; 15.75 GiB there",  # noqa: E501
                  page.splitlines()[-1])  # fmt: skip


@needs_libtpu
def test_a_tpu_step_that_does_not_fit_gets_compiled_advice():
  """Half a million tokens at once on one chip: the compiler refuses; in parts they fit."""
  settings = small_model(batch_size=1024, grad_accumulation=1, **{"model.remat": "none"})
  result = plan("--topology=v5e:1x1", *settings)
  assert result.returncode == 1, result.stdout + result.stderr
  *page, verdict = result.stdout.splitlines()
  assert verdict.startswith("does not fit: ")
  (said,) = re.findall(r"^This fits \(([\d.]+ GiB), compiled\):$", result.stdout, re.MULTILINE)
  (command,) = [line for line in page if line.startswith("  python -m gptneo_jax.plan")]
  assert "--config.grad_accumulation=" in command and "adafactor" not in command
  followed = plan(*shlex.split(command.strip())[3:])
  assert followed.returncode == 0, followed.stdout + followed.stderr
  assert followed.stdout.splitlines()[-1].startswith(f"fits: {said} needed")  # what was promised


@needs_libtpu
def test_programs_run_on_a_cpu_beside_tpus_compiler(tmp_path):
  """A machine without a TPU that has its compiler: training takes the CPU, as it would without."""
  command = train_runs.train_command(tmp_path, data__source="stdlib", steps=1)
  environment = train_runs.environment()
  del environment["JAX_PLATFORMS"]
  result = subprocess.run(
    [*command, "--config.data.tokenizer=train"],
    cwd=train_runs.REPOSITORY, env=environment, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert "1 cpu device(s)" in result.stdout
  assert "TPU" not in result.stderr  # it is not looked for


@pytest.mark.parametrize(
  ("arg", "name", "fits"),
  [
    ("", "EleutherAI/gpt-neo-125m", True),
    (":lora", "EleutherAI/gpt-neo-1.3B", True),
    (":qlora", "EleutherAI/gpt-neo-2.7B", True),
    ("", "EleutherAI/gpt-neo-2.7B", False),
  ],
)
def test_what_a_t4_can_fine_tune(arg, name, fits, capsys):
  """Of models of the hub, which are not fetched, and without data."""
  config = config_file.load(f"configs/finetune/spam.py{arg}").unlock()
  config.init_from = name
  assert planner.run(config.lock(), "t4:1") == (not fits)
  assert capsys.readouterr().out.splitlines()[-1].startswith("fits" if fits else "does not fit")


@pytest.mark.parametrize(
  ("name", "shown"), [("configs/tiny.py", True), ("configs/finetune/spam.py", False)]
)
def test_published_runs_are_beside_pre_training_alone(name, shown, capsys):
  config = config_file.load(name).unlock()
  config.update(init_from="", adopt_model=False)
  planner.run(config.lock(), "t4:1")
  assert ("beside published ones of its size" in capsys.readouterr().out) == shown
