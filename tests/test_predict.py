"""The program that predicts, and lm.predict: what they say, and in which order."""

import io
import json
import shutil

import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import predict
from gptneo_jax.errors import UserError
from tests.helpers import headed_folders

TEXTS = ["fox", "The quick brown fox jumps over the lazy dog", "Olá, mundo", "e", "dog " * 12, ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
  return headed_folders.spam(tmp_path_factory.mktemp("spam") / "run")


@pytest.fixture(scope="module")
def lm(folder):
  return gptneo_jax.load(folder)


def alone(lm, text: str) -> np.ndarray:
  """Probabilities from the ids of one text, without anything beside it."""
  ids = lm.tokenizer(text, add_special_tokens=False).input_ids or [lm.tokenizer.eos_token_id]
  logits = np.asarray(lm.logits([ids[-32:]]), np.float64)[0]
  return np.exp(logits) / np.exp(logits).sum()


def test_many_texts_are_predicted_as_each_alone(lm):
  said = lm.predict(TEXTS)
  assert len(said) == len(TEXTS)
  for text, one in zip(TEXTS, said):
    found = [one["probabilities"][name] for name in ("ham", "spam")]
    np.testing.assert_allclose(found, alone(lm, text), rtol=1e-5)
    assert one["label"] == ("ham", "spam")[int(np.argmax(found))]
  assert [one["label"] for one in lm.predict("fox")] == [said[0]["label"]]
  assert lm.predict([]) == []


def test_left_right_and_no_padding_read_the_same_token(lm):
  """With the mask that a tokenizer gives; here padding is the end of text, as in GPT-2."""
  ids = lm.tokenizer(TEXTS[1], add_special_tokens=False).input_ids
  pad = [lm.tokenizer.eos_token_id] * 7
  bare = np.asarray(lm.logits([ids]))
  lm.config = lm.config.replace(pad_token_id=pad[0])
  for row, mask in ((pad + ids, [0] * 7 + [1] * len(ids)), (ids + pad, [1] * len(ids) + [0] * 7)):
    np.testing.assert_allclose(lm.logits([row], attention_mask=[mask]), bare, atol=1e-5)


def test_the_program_writes_a_line_for_each_record(folder, lm, tmp_path, capsys):
  file = tmp_path / "messages.csv"
  file.write_text('id,message\n1,fox\n2,"Olá, mundo"\n', encoding="utf-8")
  assert predict.main(["--checkpoint", folder, "--input", str(file)]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  expected = lm.predict(["fox", "Olá, mundo"])
  assert [line["label"] for line in lines] == [one["label"] for one in expected]
  output = tmp_path / "out.jsonl"
  predict.main(["--checkpoint", folder, "--input", str(file), "--output", str(output)])
  assert [json.loads(line) for line in output.open(encoding="utf-8")] == lines


@pytest.mark.parametrize("trained_on", ["text=message", "label=0,text=1"])
def test_lines_of_text_need_no_columns(trained_on, folder, tmp_path, monkeypatch, capsys):
  """Whatever the fields of the table were called that the model was trained on."""
  copy = tmp_path / "run"
  shutil.copytree(folder, copy)
  task = json.loads((copy / "task.json").read_text())
  (copy / "task.json").write_text(json.dumps(task | {"columns": trained_on}))
  lines = io.BytesIO("fox\nOlá, mundo\n".encode())
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines, encoding="utf-8"))
  assert predict.main(["--checkpoint", str(copy), "--input", "-"]) == 0
  said = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
  expected = gptneo_jax.load(folder).predict(["fox", "Olá, mundo"])
  assert said == [one["label"] for one in expected]


def test_long_texts_are_cut_at_the_left(lm, caplog):
  [said] = lm.predict(["dog " * 40 + TEXTS[1]])
  found = [said["probabilities"][name] for name in ("ham", "spam")]
  np.testing.assert_allclose(found, alone(lm, "dog " * 40 + TEXTS[1]), rtol=1e-5)
  assert "cut at the left" in caplog.text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--input", "missing.csv"], "missing.csv"),
    (["--input", "FILE", "--columns", "txt=a"], "there is no 'txt' here; did you mean text?"),
    (["--input", "FILE", "--columns", "text=body"], "no column 'body'"),
    (["--input", "FILE", "--batch_size", "0"], "--batch_size is 0"),
  ],
)
def test_mistakes(folder, tmp_path, arguments, message):
  file = tmp_path / "messages.csv"
  file.write_text("message\nfox\n")
  given = [str(file) if one == "FILE" else one for one in arguments]
  with pytest.raises(UserError) as caught:
    predict.main(["--checkpoint", folder, *given])
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_language_model_predicts_no_labels():
  lm = gptneo_jax.init(gptneo_jax.ModelConfig(hidden_size=16, num_layers=2, num_heads=2), 0)
  with pytest.raises(UserError, match="the model's head is 'lm'"):
    lm.predict("text")


def test_inputs_that_are_none(lm):
  with pytest.raises(UserError, match="input 2 is 7, neither a text nor a dictionary"):
    lm.predict(["fox", 7])
  with pytest.raises(UserError, match="no column 'text'"):
    lm.predict([{"body": "fox"}])
