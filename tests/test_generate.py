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
from gptneo_jax.generation import chat


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A self-contained folder: a tiny model at random, and a tokenizer."""
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


def typed(text):
  """Standard input, of a pipe."""
  content = text if isinstance(text, bytes) else text.encode()
  return io.TextIOWrapper(io.BytesIO(content), encoding="ascii")  # whatever the terminal's is


def test_stream_and_standard_input(checkpoint, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", typed("the quick"))
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
    lambda self, prompt, **options: (
      seen.append(self.tokenizer.decode(prompt[0])) or stream(self, prompt, **options)
    ),
  )  # fmt: skip
  monkeypatch.setattr("sys.stdin", typed("the dog\nfox\n\n/reset\nlazy\n"))
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
    ('"\\ud800"', r"p.jsonl:2: '\\ud800' is half a character"),
    (json.dumps("the dog " * 40), r"p.jsonl:2: a prompt of .* more than the model's 64 positions"),
  ],
)
def test_bad_lines(checkpoint, tmp_path, line, message):
  (tmp_path / "p.jsonl").write_text(f'"a"\n{line}\n')
  with pytest.raises(UserError, match=message):
    generate.main(["--checkpoint", checkpoint, "--prompts", str(tmp_path / "p.jsonl")])


def test_files_as_they_are(checkpoint, tmp_path, capsys):
  """Only line feeds end a line; a byte-order mark, UTF-16; the command's own output is read."""
  argv = ["--checkpoint", checkpoint, "--max_new_tokens", "2", "--output", "jsonl", "--prompts"]
  odd = "a\u2028b\u2029c\u0085d"
  lines = "\r\n".join(json.dumps(text, ensure_ascii=False) for text in (odd, "é"))
  file = tmp_path / "p.jsonl"
  for content in (lines.encode(), lines.encode("utf-8-sig"), lines.encode("utf-16")):
    file.write_bytes(content)
    assert generate.main([*argv, str(file)]) == 0
    out = capsys.readouterr().out
    assert [json.loads(line)["prompt"] for line in out.rstrip("\n").split("\n")] == [odd, "é"]
  file.write_text(out, encoding="utf-8")
  assert generate.main([*argv, str(file)]) == 0
  assert capsys.readouterr().out == out
  file.write_bytes('"a"\n"é"'.encode("latin-1"))
  with pytest.raises(UserError, match=r"p\.jsonl:2: byte 0xe9 is not UTF-8; convert it"):
    generate.main([*argv, str(file)])
  with pytest.raises(UserError, match=r"--prompt: '.udce9' is half a character"):
    generate.main([*argv[:-1], "--prompt", "caf\udce9"])


def test_an_empty_prompt_begins_with_the_beginning_of_text(checkpoint, capsys):
  lm = gptneo_jax.load(checkpoint)
  expected = lm.generate([[lm.tokenizer.bos_token_id]], max_new_tokens=3)
  assert lm.generate("", max_new_tokens=3).texts == expected.texts
  assert generate.main(["--checkpoint", checkpoint, "--prompt", "", "--max_new_tokens", "3"]) == 0
  assert capsys.readouterr().out == expected.texts[0] + "\n"


def test_several_texts_are_told_apart(checkpoint, capsys):
  argv = ["--checkpoint", checkpoint, "--prompt", "the dog", "--prompt", "fox", "--batch_size", "1"]
  argv += ["--max_new_tokens", "2"]
  lm = gptneo_jax.load(checkpoint)
  one, two = (text + lm.generate(text, max_new_tokens=2).texts[0] for text in ("the dog", "fox"))
  for output in ("text", "stream"):
    assert generate.main([*argv, "--output", output]) == 0
    assert capsys.readouterr().out == f"--- 1 of 2 ---\n{one}\n--- 2 of 2 ---\n{two}\n"


def test_another_tokenizer(checkpoint, tmp_path, capsys):
  from tests.helpers.hf_folders import word_tokenizer

  word_tokenizer(tmp_path)
  argv = ["--checkpoint", checkpoint, "--tokenizer", str(tmp_path), "--output", "jsonl"]
  assert generate.main([*argv, "--prompt", "w5 w6", "--max_new_tokens", "2"]) == 0
  expected = gptneo_jax.load(checkpoint).generate([[5, 6]], max_new_tokens=2)
  assert json.loads(capsys.readouterr().out)["tokens"] == expected.sequences[0, 2:].tolist()


# --- talks ----------------------------------------------------------------------------------------


def test_formats_of_a_talk():
  parse = chat.Format.parse
  assert parse(chat.FORMAT) == parse("User: {message}\\nAssistant:")
  assert parse(chat.FORMAT).stop == "\nUser:"
  dialogue = parse("{message}<|endoftext|>{answer}<|endoftext|>")
  assert dialogue == ("", "<|endoftext|>", "<|endoftext|>") and dialogue.stop == "<|endoftext|>"
  assert parse("{message}\nBot: {answer}\n").stop == "\n"
  for wrong in ("Q: A:", "Q: {message}"):
    with pytest.raises(UserError, match=r"--chat_format is a text with {message}"):
      parse(wrong)


def test_turns_divided_by_the_end_of_text(checkpoint, monkeypatch, capsys):
  seen = []
  stream = LanguageModel.stream
  monkeypatch.setattr(
    LanguageModel, "stream",
    lambda self, prompt, **options: (
      seen.append(self.tokenizer.decode(prompt[0])) or stream(self, prompt, **options)
    ),
  )  # fmt: skip
  monkeypatch.setattr("sys.stdin", typed("dog\nfox\n"))
  argv = ["--checkpoint", checkpoint, "--chat", "--max_new_tokens", "2"]
  generate.main([*argv, "--chat_format", "{message}<|endoftext|>{answer}<|endoftext|>"])
  answers = capsys.readouterr().out.splitlines()
  assert seen == ["dog<|endoftext|>", f"dog<|endoftext|>{answers[0]}<|endoftext|>fox<|endoftext|>"]


def test_a_talk_goes_on(checkpoint, monkeypatch, capsys):
  """After a message that is too long, and after bytes that are no text; /help helps."""
  monkeypatch.setattr("sys.stdin", typed(b"the dog " * 60 + b"\ncaf\xe9\n/help\nfox\n"))
  assert generate.main(["--checkpoint", checkpoint, "--chat", "--max_new_tokens", "4"]) == 0
  out, err = capsys.readouterr()
  assert "error: the message makes" in err and "60 is the most; shorten it" in err
  assert "error: that is no text in UTF-8" in err
  assert out.startswith("/reset forgets what was said, /help shows this, Ctrl-D ends.\n")
  assert len(out.splitlines()) >= 2
  with pytest.raises(UserError, match="--max_length counts the prompt, which grows"):
    generate.main(["--checkpoint", checkpoint, "--chat", "--max_length", "30"])


def test_a_talk_in_a_terminal_is_greeted(checkpoint, monkeypatch, capsys):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr("sys.stdin", Terminal(""))
  assert generate.main(["--checkpoint", checkpoint, "--chat"]) == 0
  assert capsys.readouterr().out.startswith("Write a message. /reset forgets")


def test_nothing_to_do(checkpoint):
  with pytest.raises(UserError, match="no prompt; give --prompt"):
    generate.main(["--checkpoint", checkpoint])
  with pytest.raises(UserError, match="--chat asks for its texts"):
    generate.main(["--checkpoint", checkpoint, "--chat", "--prompt", "a"])
  with pytest.raises(UserError, match="is not JSON; sequences of ids"):
    generate.main(["--checkpoint", checkpoint, "--prompt", "a", "--bad_words_ids", "[["])
