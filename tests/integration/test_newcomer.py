"""The way of a newcomer: questions and answers to a chatbot, in two commands, shortened."""

import json
import re
import subprocess
import sys

import pytest

import gptneo_jax
from gptneo_jax import generate
from tests.helpers import train_runs
from tests.helpers.packed_checks import small_model
from tests.helpers.small_tokenizers import trained_tokenizer

PAIRS = [
  ("Who jumps over the lazy dog?", "the quick brown fox"),
  ("Qual é a ação do mundo?", "coração e ação"),
  ("What is brown?", "The fox, and the dog"),
  ("Olá?", "Olá, mundo"),
  ("Is the dog quick?", "No: the fox"),
]


@pytest.fixture(scope="module")
def readme(repository) -> list[str]:
  """The two commands, as the README's table has them."""
  row = next(
    line
    for line in (repository / "README.md").read_text(encoding="utf-8").splitlines()
    if "into a chatbot" in line
  )
  return re.findall(r"`(python -m gptneo_jax\.[^`]*)`", row)


@pytest.mark.processes
def test_a_chatbot_that_answers_a_training_question_word_for_word(readme, tmp_path, capsys):
  train, chat = (command.split() for command in readme)
  assert train[3] == "--config" and chat[-1] == "--chat"
  data, weights, folder = (tmp_path / name for name in ("questions.json", "weights", "run"))
  pairs = [{"question": question, "answer": answer} for question, answer in PAIRS]
  data.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
  lm = gptneo_jax.init(small_model("lm", 320).replace(hidden_size=64), seed=0)
  lm.tokenizer = trained_tokenizer()
  lm.save(str(weights))

  settings = {
    "data.path": data, "init_from": weights, "seq_len": 64, "epochs": 80.0, "eval_every": 0,
    "optimizer.learning_rate": 3e-3,
  }  # fmt: skip
  flags = [f"--config.{name}={value}" for name, value in settings.items()]
  done = subprocess.run(
    [sys.executable, *train[1:5], f"--workdir={folder}", *flags],
    cwd=train_runs.REPOSITORY, env=train_runs.environment(), capture_output=True, text=True,
    timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  for question, answer in PAIRS[:2]:
    arguments = ["--checkpoint", str(folder), "--prompt", question, "--output", "stream"]
    generate.main(arguments)
    assert capsys.readouterr().out.strip() == answer
