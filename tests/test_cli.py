"""What every program shares: errors in one line, the compilation cache, flags and progress."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tqdm
from absl import flags
from ml_collections import config_flags

from gptneo_jax import cli, convert, evaluate, generate
from gptneo_jax.errors import UserError
from gptneo_jax.training import config_file

PROGRAM = """
import jax, jax.numpy as jnp
from gptneo_jax import cli
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
def main():
  jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
  print("hits", sum(hits))
cli.guarded(main)
"""


def run(program: str, encoding: str = "utf-8", **environment: str) -> subprocess.CompletedProcess:
  variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  variables |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  return subprocess.run(
    [sys.executable, "-c", program],
    env=variables | environment, capture_output=True, encoding=encoding, timeout=120,
  )  # fmt: skip


@pytest.mark.processes
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
  first, second = (run(PROGRAM, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
  assert first.stdout == "hits 0\n", first.stderr
  assert int(second.stdout.split()[1]) > 0, second.stderr
  assert any((tmp_path / "gptneo_jax").iterdir())


@pytest.mark.processes
def test_no_cache_where_the_variable_is_empty(tmp_path):
  done = run(PROGRAM, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")
  assert done.stdout == "hits 0\n", done.stderr
  assert not any(tmp_path.iterdir())


@pytest.mark.processes
def test_a_mistake_is_one_line():
  done = run(
    "from gptneo_jax import cli, errors\n"
    "def main(): raise errors.UserError('no such thing')\n"
    "cli.guarded(main)"
  )
  assert (done.returncode, done.stderr) == (1, "error: no such thing\n")


TEXT = "⏵ ação 日本 😀 \ud800"
SPEAKS = f"""
import json, sys
from gptneo_jax import cli, errors
def main():
  print({TEXT!r})
  print(json.dumps({TEXT!r}, ensure_ascii=False), flush=True)
  raise errors.UserError({TEXT!r})
cli.guarded(main)
"""


@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_that_cannot_show_a_character_stops_nothing(encoding):
  """What it cannot show is escaped, so that JSON is JSON still."""
  done = run(SPEAKS, encoding=encoding, PYTHONIOENCODING=encoding)
  assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
  text, line = done.stdout.splitlines()
  assert json.loads(line) == TEXT == json.loads(f'"{text}"')
  assert json.loads(f'"{done.stderr.strip()}"') == f"error: {TEXT}"
  assert ("ação" in text) == (encoding != "ascii") and ("⏵" in text) == (encoding == "utf-8")


def reader_gone(program: str, **popen) -> tuple[int, str]:
  """Status and standard error of a program whose reader leaves after its first line."""
  with subprocess.Popen(
    [sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  ) as process:  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write("go on\n")
    process.stdin.close()
    return process.wait(timeout=120), process.stderr.read()


@pytest.mark.processes
@pytest.mark.parametrize(
  "rest",
  [
    "print('a line that stays in the buffer')",
    "for number in range(100_000): print(number)",
    "sys.exit(0)  # as --help does; what was printed is still in the buffer",
  ],
)
def test_a_reader_that_has_gone_ends_a_program_quietly(rest):
  program = (
    "import sys\nfrom gptneo_jax import cli\n"
    "def main():\n"
    "  print('first', flush=True)\n  sys.stdin.readline()\n  print('second')\n"
    f"  {rest}\n"
    "cli.guarded(main)"
  )
  assert reader_gone(program) == (cli.EXIT_CLOSED_PIPE, "")


@pytest.mark.processes
def test_a_broken_connection_is_no_reader_that_has_gone():
  done = run(
    "from gptneo_jax import cli\n"
    "def main(): raise BrokenPipeError('of a socket')\n"
    "cli.guarded(main)"
  )
  assert done.returncode == 1 and "BrokenPipeError: of a socket" in done.stderr


@pytest.mark.processes
def test_interrupting_ends_quietly():
  done = run(
    "import os, signal\nfrom gptneo_jax import cli\n"
    # What was started in the background of a script ignores Ctrl-C, and so would this.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "def main(): os.kill(os.getpid(), signal.SIGINT)\n"
    "cli.guarded(main)"
  )
  assert (done.returncode, done.stdout, done.stderr) == (cli.EXIT_INTERRUPTED, "", "")


@pytest.mark.parametrize(
  ("program", "arguments", "message"),
  [
    (evaluate, "--batchsize 3", "unknown flag --batchsize; did you mean --batch_size?"),
    (evaluate, "--limit few", "argument --limit: invalid int value: 'few'"),
    (evaluate, "runs/tiny", "unexpected argument 'runs/tiny'"),
    (generate, "--checkpoint d --max_tokens=3", "--max_tokens; did you mean --max_new_tokens?"),
    (generate, "--prompt a", "the following arguments are required: --checkpoint"),
    (convert, "orbax-to-hf a b --stp 3", "unknown flag --stp; did you mean --step?"),
    (convert, "hf-to-orbax a b --zzz", "unknown flag --zzz$"),
    (convert, "hf_to_orbax a b", "invalid choice: 'hf_to_orbax'"),
  ],
)
def test_flags_that_are_unknown_or_wrong(program, arguments, message):
  with pytest.raises(UserError, match=message):
    program.main(arguments.split())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("--config configs/tiny.py --batchsize=3", "--batchsize; did you mean --config.batch_size?"),
    ("--config=configs/tiny.py --lr 1", "--lr; did you mean --config.optimizer.learning_rate?"),
    ("--config configs/tiny.py --wrkdir a", "--wrkdir; did you mean --workdir?"),
    ("--config configs/tiny.py --zzz", "unknown flag --zzz$"),
    ("--config configs/tiny.py runs/mine", "unexpected argument 'runs/mine'"),
    ("--config tiny", "no config file 'tiny'; did you mean configs/tiny.py?"),
    ("--config neo-1p3b", "'neo-1p3b'; did you mean configs/neo_1p3b.py?"),
    ("--config elsewhere/tiny.py", "did you mean configs/tiny.py?"),
    ("--config something", "there are: configs/gpt2_small.py, .*configs/tiny.py"),
    ("configs/tiny.py", "no --config; for example"),
  ],
)
def test_flags_of_programs_with_a_config(arguments, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flag_values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=flag_values)
  config_flags.DEFINE_config_file("config", flag_values=flag_values)
  with pytest.raises(UserError, match=message):
    config_file._parse(["train", *arguments.split()], flag_values)


@pytest.mark.processes
@pytest.mark.parametrize(
  ("platform", "message"),
  [("cuda", "JAX has no plugin for it here"), ("zzz", "'zzz' is not in the")],
)
def test_a_platform_that_cannot_be_started_is_one_line(platform, message):
  if importlib.util.find_spec("jax_plugins"):
    pytest.skip("this machine has a plugin")
  done = run(
    "import jax\nfrom gptneo_jax import cli\ncli.guarded(jax.devices)", JAX_PLATFORMS=platform
  )
  assert done.returncode == 1 and done.stdout == ""
  assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
  assert f"error: JAX cannot start JAX_PLATFORMS={platform}" in done.stderr


def test_an_error_of_another_kind_is_not_taken_for_one_of_platforms():
  def fails():
    raise RuntimeError("something else")

  with pytest.raises(RuntimeError, match="something else"):
    cli.guarded(fails)


def test_memory_that_runs_out_is_one_line(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.guarded(jax.jit(lambda: jnp.zeros(1 << 45, jnp.float32)))
  line = capsys.readouterr().err
  assert ended.value.code == 1 and line.count("\n") == 1
  assert line.startswith("error: out of memory: Out of memory allocating 140737488355328 bytes. ")


@pytest.mark.parametrize("text", ["-1", "4294967296", "1" * 30, "1.5", "x"])
@pytest.mark.parametrize(
  ("program", "rest"), [(generate, "--checkpoint a"), (evaluate, "--data b")]
)
def test_seeds_that_no_key_holds(program, rest, text):
  with pytest.raises(UserError, match=r"--seed.*from 0 to 2\*\*32 - 1"):
    program.main([*rest.split(), f"--seed={text}"])


def test_home_in_paths_and_not_in_texts(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  parser = cli.Parser()
  parser.add_argument("--checkpoint", metavar="DIR")
  parser.add_argument("--compare", nargs="+", metavar="FILE.json")
  parser.add_argument("--prompt", action="append", metavar="TEXT")
  parser.add_argument("--absent", metavar="FILE")
  args = parser.parse_args(["--checkpoint=~/a", "--compare", "~/b", "c", "--prompt=~/d"])
  assert args.checkpoint == f"{tmp_path}/a" and args.compare == [f"{tmp_path}/b", "c"]
  assert args.prompt == ["~/d"] and args.absent is None


def test_home_and_colons_in_the_path_of_a_config(monkeypatch, tmp_path, repository):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "a:b").mkdir()
  text = (repository / "configs" / "tiny.py").read_text()
  for folder in (tmp_path, tmp_path / "a:b"):
    (folder / "own.py").write_text(text)
  assert config_file.load("~/own.py") == config_file.load(f"{tmp_path}/own.py")
  assert config_file.load("~/own.py:runlocal").steps < config_file.load("~/own.py").steps
  for argument in ("", ":runlocal"):
    with pytest.raises(UserError, match="a ':' divides a config's file from its argument"):
      config_file.load(f"{tmp_path}/a:b/own.py{argument}")
  monkeypatch.chdir(tmp_path / "a:b")
  assert config_file.load("own.py").steps == config_file.load("~/own.py").steps


@pytest.mark.parametrize("program", [evaluate, generate, convert])
def test_help(program, capsys):
  with pytest.raises(SystemExit) as ended:
    program.main(["--help"])
  shown = capsys.readouterr().out
  assert ended.value.code == 0
  assert program.__doc__.splitlines()[0] in shown and "python -m gptneo_jax" in shown


# --- progress: plain lines without a terminal, tqdm's bar on one ----------------------------------


@pytest.fixture
def minutes(monkeypatch):
  """tqdm's clock, a minute later at each call."""
  now = iter(range(0, 10**6, 60))
  create = tqdm.tqdm.__init__

  def start(bar, *args, **options):
    create(bar, *args, **options)
    bar._time = lambda: float(next(now))
    bar.start_t = bar.last_print_t = bar._time()

  monkeypatch.setattr(tqdm.tqdm, "__init__", start)


def progress_lines(capsys) -> list[str]:
  text = capsys.readouterr().err
  assert "\r" not in text and "\x1b" not in text and (not text or text.endswith("\n"))
  return text.splitlines()


def test_a_short_job_is_one_line(capsys):
  with cli.progress_bar(total=400, desc="answers", initial=100) as bar:
    for _ in range(300):
      bar.update()
  (line,) = progress_lines(capsys)
  assert line.startswith("answers: 100% 400/400 [")


def test_a_long_one_has_a_line_now_and_then(capsys, minutes):
  with cli.progress_bar(desc="evaluating", unit=" tokens", unit_scale=True) as bar:
    for _ in range(3):
      bar.update(2000)
      bar.set_postfix_str("loss 2.5", refresh=False)
      tqdm.tqdm.write("something else")
  shown = progress_lines(capsys)
  assert [line.split(" [")[0] for line in shown] == [
    f"evaluating: {n}.00k tokens" for n in (2, 4, 6)
  ]
  assert "loss 2.5" in shown[-1]


def test_a_job_shorter_than_its_delay_says_nothing(capsys):
  with cli.progress_bar(total=3, delay=100) as bar:
    bar.update(3)
  assert progress_lines(capsys) == []


def test_nothing_done_or_switched_off_says_nothing(capsys):
  with cli.progress_bar(total=0):
    pass
  with cli.progress_bar(total=3, disable=True) as bar:
    bar.update()
  assert progress_lines(capsys) == []


def test_on_a_terminal_it_is_a_bar(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with cli.progress_bar(total=3) as bar:
    bar.update(3)
  assert "\r" in capsys.readouterr().err
