"""The command that continues a text."""

import subprocess
import sys

import pytest

import gptneo_jax
from gptneo_jax import generate
from gptneo_jax.data import load_tokenizer
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A folder that stands alone: a tiny model at random, and a tokenizer."""
  text = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20
  lm = gptneo_jax.init(
    gptneo_jax.ModelConfig(
      vocab_size=280, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=2,
      window_size=8,
    )
  )  # fmt: skip
  lm.tokenizer = load_tokenizer("train", documents=[Document(text, "", "here")], vocab_size=280)
  folder = tmp_path_factory.mktemp("generate") / "model"
  lm.save(str(folder))
  return str(folder)


def run(checkpoint, *arguments):
  command = [sys.executable, "-m", "gptneo_jax.generate", "--checkpoint", checkpoint, *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_command(checkpoint):
  done = run(checkpoint, "--prompt", "the quick", "--max_new_tokens", "6")
  assert done.returncode == 0, done.stderr
  lm = gptneo_jax.load(checkpoint)
  assert done.stdout == "the quick" + lm.generate("the quick", max_new_tokens=6).texts[0] + "\n"


def test_sampling(checkpoint, capsys):
  def text(*arguments):
    argv = ["--checkpoint", checkpoint, "--prompt", "the dog", "--max_new_tokens", "12"]
    assert generate.main([*argv, *arguments]) == 0
    return capsys.readouterr().out

  greedy = text()
  assert text() == text("--seed", "5") == greedy  # the likeliest does not depend on the seed
  warm = text("--temperature", "1.5", "--seed", "1")
  assert warm == text("--temperature", "1.5", "--seed", "1")
  assert warm != text("--temperature", "1.5", "--seed", "2")
  assert text("--top_k", "1") == text("--do_sample", "--top_k", "1") == greedy


def test_mistakes_are_one_line(checkpoint, tmp_path):
  done = run(str(tmp_path), "--prompt", "a")
  assert done.returncode == 1
  assert done.stdout == ""
  (line,) = [line for line in done.stderr.splitlines() if "PyTorch was not found" not in line]
  assert line.startswith("error: ") and str(tmp_path) in line


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--prompt", ""], "prompt is empty"),
    (["--prompt", "a", "--max_new_tokens", "100"], "more than the model's 64 positions"),
    (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens is 0"),
    (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
  ],
)
def test_bad_options(checkpoint, arguments, message):
  with pytest.raises(UserError, match=message):
    generate.main(["--checkpoint", checkpoint, *arguments])
