"""Predictions against a labelled file, by the program: metrics, confusion, picture."""

import json

import pytest

import gptneo_jax
from gptneo_jax import evaluate
from gptneo_jax.errors import UserError
from gptneo_jax.evals import labelled
from tests.helpers import headed_folders

TEXTS = [
  "fox",
  "The quick brown fox",
  "Olá, mundo",
  "e",
  "dog dog dog",
  "jumps over",
  "ação",
  "lazy",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
  return headed_folders.spam(tmp_path_factory.mktemp("spam") / "run")


def test_the_report_counts_what_is_taken_for_what(folder, tmp_path):
  said = [one["label"] for one in gptneo_jax.load(folder).predict(TEXTS)]
  assert set(said) == {"ham", "spam"}, "a model that tells the texts apart"
  true = [*said[:5], *("spam" if label == "ham" else "ham" for label in said[5:])]
  file, output = tmp_path / "test.jsonl", tmp_path / "spam.json"
  lines = [json.dumps({"message": text, "label": label}) for text, label in zip(TEXTS, true)]
  file.write_text("\n".join(lines), encoding="utf-8")
  arguments = ["--checkpoint", folder, "--labelled", str(file), "--output", str(output)]
  assert evaluate.main(arguments) == 0
  report = json.loads(output.read_text())
  assert report["results"]["labelled"]["accuracy"] == 5 / 8
  counts = [[0, 0], [0, 0]]
  for there, guess in zip(true, said):
    counts[["ham", "spam"].index(there)][["ham", "spam"].index(guess)] += 1
  assert report["labelled"]["confusion"] == {"labels": ["ham", "spam"], "counts": counts}
  assert "accuracy" in output.with_suffix(".md").read_text()
  assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_label_that_training_did_not_know(folder, tmp_path):
  file = tmp_path / "test.jsonl"
  file.write_text('{"message": "fox", "label": "span"}')
  with pytest.raises(UserError, match=r"test\.jsonl:1: the label 'span' is none .* mean spam"):
    labelled.evaluate(gptneo_jax.load(folder), str(file))


def test_records_without_labels(folder, tmp_path):
  file = tmp_path / "test.jsonl"
  file.write_text('{"message": "fox"}')
  with pytest.raises(UserError, match="no column 'label'"):
    labelled.evaluate(gptneo_jax.load(folder), str(file))
