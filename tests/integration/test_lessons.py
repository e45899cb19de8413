"""docs/lessons.md does what it says: its blocks run from first to last, in one folder."""

from __future__ import annotations

import contextlib
import importlib
import io
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from gptneo_jax import train
from gptneo_jax.training import config_file
from tests.helpers.served import serving

PAGE = "docs/lessons.md"
DIFFERS = "<!-- yours differ -->"  # before an output that a trained model decides
ADDRESS = "http://127.0.0.1:8000"

# Added to commands that hold the text, to be quick: what a model has learned then is not looked at.
SHORTER = {
  "configs/tiny.py": (
    "--config.data.source=text --config.data.path=REPOSITORY/docs/*.md"
    " --config.data.validation_path=REPOSITORY/CONTRIBUTING.md --config.seq_len=128"
    " --config.steps=12 --config.schedule.warmup_steps=4 --config.log_every=6"
    " --config.eval_every=6 --config.checkpoint_every=12 --config.eval.batch_size=4"
    " --config.eval.sample_tokens=0 --config.eval.baselines=False"
  ),
  "configs/finetune/spam.py": "--config.epochs=1",
  "--data stdlib": "--limit 1",
}
MOST_LINES = 10  # of a block of Python


class Block(NamedTuple):
  """line: of the page, on which it begins. shown: the output behind it, None without one."""

  line: int
  language: str
  text: str
  shown: str | None
  differs: bool


def blocks(page: str) -> Iterator[Block]:
  fences = list(re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
  for fence, after in zip(fences, [*fences[1:], None]):
    if not fence[1]:
      continue
    shown, differs = None, False
    if after and not after[1]:
      between = page[fence.end() : after.start()].strip()
      assert between in ("", DIFFERS), between
      shown, differs = after[2], between == DIFFERS
    yield Block(page.count("\n", 0, fence.start()) + 1, fence[1], fence[2], shown, differs)


def form(output: str) -> str:
  """An output without what a trained model decides: figures, texts in quotes, how many of them."""
  output = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "'…'", output)
  output = re.sub(r"-?\d[\d.,]*(?:e[+-]?\d+)?", "#", output)
  output = re.sub(r"('…'|#)(?:[ ,]+\1)+", r"\1", output)
  return re.sub(r" +(?=\])", "", re.sub(r" +", " ", output)).rstrip()


class Reader:
  """Runs blocks in the current folder, in one namespace, and returns what they print."""

  def __init__(self, repository: pathlib.Path, servers: contextlib.ExitStack):
    self._repository, self._servers = repository, servers
    self._names: dict = {"__name__": "lessons"}
    self._address = ADDRESS

  def run(self, block: Block) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      if block.language == "python":
        source = "\n" * block.line + block.text.replace(ADDRESS, self._address)
        exec(compile(source, PAGE, "exec"), self._names)
      else:
        assert block.language == "bash", block
        for line in block.text.replace("\\\n", " ").splitlines():
          self._command(line)
    return printed.getvalue()

  def _command(self, line: str) -> None:
    fed, _, command = line.rpartition(" | ")
    words = shlex.split(command)
    for text, more in SHORTER.items():
      words += more.replace("REPOSITORY", str(self._repository)).split() if text in command else []
    assert words[:2] == ["python", "-m"], line
    module, arguments = words[2], words[3:]
    with pytest.MonkeyPatch.context() as patch:
      if fed:
        echo, text = shlex.split(fed)
        assert echo == "echo"
        typed = io.BytesIO(f"{text}\n".encode())
        patch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding="utf-8"))
      if module == "gptneo_jax.train":
        assert training(arguments) == 0
      elif module == "gptneo_jax.serve":
        assert arguments[0] == "--checkpoint"
        self._address = self._servers.enter_context(serving(*arguments[1:])).url
      else:
        assert importlib.import_module(module).main(arguments) == 0


def training(arguments: list[str]) -> int:
  """The command in this process, which parses the flags of many."""
  argv, values = ["train", *arguments], flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  config_file._parse(argv, values)
  workdir = values.workdir or f"runs/{config_file.config_name(values)}"
  return train.run(values.config, workdir)


@pytest.fixture(scope="module")
def page(repository) -> list[Block]:
  return list(blocks((repository / PAGE).read_text(encoding="utf-8")))


def test_no_block_of_python_is_long(page):
  for block in page:
    lines = [line for line in block.text.splitlines() if line.strip()]
    assert block.language == "bash" or len(lines) <= MOST_LINES, f"{PAGE}:{block.line}"
    assert max(map(len, lines)) <= 100, f"{PAGE}:{block.line}"


@pytest.mark.processes
def test_every_block_prints_what_the_page_shows(page, repository, tmp_path, monkeypatch):
  pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
  monkeypatch.chdir(tmp_path)
  with contextlib.ExitStack() as servers:
    servers.enter_context(jax.numpy_rank_promotion("allow"))  # as where a reader tries it
    reader = Reader(repository, servers)
    for block in page:
      printed = reader.run(block)
      if block.shown is not None:
        form_of = form if block.differs else str.rstrip
        assert form_of(printed) == form_of(block.shown), f"{PAGE}:{block.line}"
