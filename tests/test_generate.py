"""The command that continues a text."""

import io
import json
import subprocess
import sys

import pytest

import gptneo_jax
from gptneo_jax import generate
from gptneo_jax.data import load_tokenizer
from gptneo_jax.data.documents import Document
from gptneo_jax.engine import LanguageModel
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


def test_several_prompts_and_json(checkpoint, tmp_path, capsys):
  """From the command line and from a file; one object a line, with what each token's share is."""
  file = tmp_path / "prompts.jsonl"
  file.write_text('{"prompt": "the dog"}\n\n"the quick"\n')
  argv = ["--checkpoint", checkpoint, "--prompts", str(file), "--prompt", "fox"]
  argv += ["--output", "jsonl", "--max_new_tokens", "5", "--num_beams", "2", "--batch_size", "2"]
  assert generate.main([*argv, "--num_return_sequences", "2"]) == 0
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["prompt"] for row in rows] == ["fox"] * 2 + ["the dog"] * 2 + ["the quick"] * 2
  lm = gptneo_jax.load(checkpoint)
  expected = lm.generate("the dog", max_new_tokens=5, num_beams=2)
  assert rows[2]["text"] == expected.texts[0]
  assert rows[2]["score"] == pytest.approx(float(expected.sequences_scores[0]), abs=1e-5)
  for row in rows:
    assert len(row["tokens"]) == len(row["logprobs"]) <= 5
    assert row["logprob"] == pytest.approx(sum(row["logprobs"]), abs=1e-5)
    assert row["score"] == pytest.approx(row["logprob"] / len(row["tokens"]), abs=1e-5)


def test_stream_and_standard_input(checkpoint, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", io.StringIO("the quick"))
  argv = ["--checkpoint", checkpoint, "--max_new_tokens", "6"]
  assert generate.main([*argv, "--prompt", "-", "--output", "stream"]) == 0
  streamed = capsys.readouterr().out
  assert generate.main([*argv, "--prompt", "the quick"]) == 0
  assert capsys.readouterr().out == streamed


def test_chat(checkpoint, capsys, monkeypatch):
  """Turns until the input ends; the talk so far is part of the prompt, until it is reset."""
  seen = []
  stream = LanguageModel.stream
  monkeypatch.setattr(
    LanguageModel, "stream",
    lambda self, prompt, **options: seen.append(prompt) or stream(self, prompt, **options),
  )  # fmt: skip
  monkeypatch.setattr("sys.stdin", io.StringIO("the dog\nfox\n\n/reset\nlazy\n"))
  argv = ["--checkpoint", checkpoint, "--chat", "--max_new_tokens", "4"]
  assert generate.main([*argv, "--chat_format", "U: {message}\nA:"]) == 0
  first, second, third = seen
  assert first == "U: the dog\nA:" and third == "U: lazy\nA:"
  answers = capsys.readouterr().out
  assert second.startswith(first) and second.endswith("\nU: fox\nA:")
  assert second[len(first) : -len("\nU: fox\nA:")] in answers


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", r"p.jsonl:2: not JSON"),
    ("[1]", r"p.jsonl:2: neither a text nor an object"),
    ('{"text": "a"}', r"p.jsonl:2: neither a text nor an object"),
    ('""', r"p.jsonl:2: the prompt is empty"),
  ],
)
def test_bad_lines(checkpoint, tmp_path, line, message):
  (tmp_path / "p.jsonl").write_text(f'"a"\n{line}\n')
  with pytest.raises(UserError, match=message):
    generate.main(["--checkpoint", checkpoint, "--prompts", str(tmp_path / "p.jsonl")])


def test_nothing_to_do(checkpoint):
  with pytest.raises(UserError, match="no prompt; give --prompt"):
    generate.main(["--checkpoint", checkpoint])
  with pytest.raises(UserError, match="--chat asks for its texts"):
    generate.main(["--checkpoint", checkpoint, "--chat", "--prompt", "a"])
  with pytest.raises(UserError, match="is not JSON; sequences of ids"):
    generate.main(["--checkpoint", checkpoint, "--prompt", "a", "--bad_words_ids", "[["])
