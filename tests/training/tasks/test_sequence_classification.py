"""Sequence classification: masks, packing, parity of the loss, a run that resumes."""

import json

import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.examples import labels, sequence_classification, splits
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.training.tasks.sequence_classification import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

TEXTS = ["the lazy dog", "Olá, mundo: ação", "fox", "The quick brown fox jumps over it", "e a ação"]


def spec_of(records, **fields) -> TaskSpec:
  return labels.settle(records, TaskSpec("sequence_classification", 48, **fields))


def records_of(values) -> list[Record]:
  texts = [TEXTS[n % len(TEXTS)] * (1 + n % 3) for n in range(len(values))]
  return [
    Record({"text": text, "label": value}, f"f:{n}")
    for n, (text, value) in enumerate(zip(texts, values))
  ]


PROBLEMS = {
  "single_label_classification": ["a", "b", "c", "a", "b", "b", "c"],
  "multi_label_classification": [["a"], ["b", "c"], [], ["a", "b", "c"], ["c"], ["a"], []],
  "regression": [0.5, -1.0, 2.0, 0.25, 1.0, 3.5, -2.0],
}


def examples_of(problem: str, **settings):
  records = records_of(PROBLEMS[problem])
  spec = spec_of(records, settings=settings)
  assert spec.problem == problem
  encoder = data.DocumentEncoder(trained_tokenizer())
  made = sequence_classification.encode(records, spec, encoder, labelled=True)
  model = packed_checks.small_model(
    "sequence_classification", 320, num_labels=labels.outputs(spec), problem_type=problem
  )
  return spec, made, model


@pytest.mark.parametrize("problem", PROBLEMS)
def test_packed_rows_are_padded_ones(problem):
  spec, made, model = examples_of(problem)
  packed_checks.packed_like_padded(TASK, spec, made, model)


def test_packed_rows_are_padded_ones_with_a_language_model_beside():
  spec, made, model = examples_of("single_label_classification")
  packed_checks.packed_like_padded(TASK, spec, made, model, **{"examples.lm_coefficient": 0.5})


def test_nobody_else_matters():
  spec, made, model = examples_of("single_label_classification")
  packed_checks.nobody_else_matters(TASK, spec, made, model)


def test_an_end_of_text_in_the_text_is_read():
  """A text that itself ends in end of text, which is the padding of most tokenizers."""
  tokenizer = trained_tokenizer()
  end = data.end_of_text_id(tokenizer)
  encoder = data.DocumentEncoder(tokenizer)
  spec = spec_of(records_of(["a", "b"]))
  [one] = sequence_classification.encode(
    [Record({"text": "dog" + tokenizer.eos_token}, "f:1")], spec, encoder, labelled=False
  )
  assert end not in one.sequences[0], "special tokens written in a text are ordinary text"
  assert one.values["pooled"][0] == len(one.sequences[0]) - 1
  with_end = packed_checks.with_ids(one, [*one.sequences[0][:-1], end])
  batch = packed_checks.batch_of(TASK, spec, [labelled(with_end)], 48)
  assert batch["inputs"][0, batch["pooled"][0, 0]] == end


def labelled(example):
  values = {**example.values, "labels": (np.array([1, 0]),), "weights": (1.0,)}
  return type(example)(example.sequences, values=values, location=example.location)


def test_an_empty_text_can_be_read():
  encoder = data.DocumentEncoder(trained_tokenizer())
  spec = spec_of(records_of(["a", "b"]))
  [one] = sequence_classification.encode(
    [Record({"text": ""}, "f:1")], spec, encoder, labelled=False
  )
  assert one.sequences[0].tolist() == [encoder.end_of_text]


def test_weights_of_classes():
  _, made, _ = examples_of("single_label_classification", class_weights="b=3")
  assert [one.values["weights"][0] for one in made] == [1, 3, 1, 1, 3, 3, 1]


def test_a_record_without_any_of_several_labels(tmp_path):
  file = tmp_path / "some.json"
  file.write_text(json.dumps([{"text": "fox", "intents": ["a", "b"]}, {"text": "dog"}]))
  config = data.DataConfig(source="auto", path=str(file), validation_fraction=0.0)
  found = splits.load_splits(
    config, sequence_classification.ROLES, sequence_classification.key
  ).train
  spec = spec_of(found)
  assert labels.target(found[1], spec).tolist() == [0, 0]
  with pytest.raises(data.DataError, match=r"record 2: no label"):
    spec_of(found[1:], problem=labels.SINGLE)


@pytest.mark.parametrize("policy", ["stop", "drop", "truncate_left"])
def test_texts_that_are_too_long(policy):
  records = [Record({"text": "fox " * n, "label": "a"}, f"f:{n}") for n in (1, 90, 2, 100)]
  spec = TaskSpec("sequence_classification", 16, on_too_long=policy, labels=("a", "b"),
                  problem="single_label_classification")  # fmt: skip
  encoder = data.DocumentEncoder(trained_tokenizer())
  encode = lambda: sequence_classification.encode(records, spec, encoder, labelled=True)
  if policy == "stop":
    with pytest.raises(data.DataError, match=r"f:90: \d+ tokens .* 2 such example"):
      encode()
    return
  made = encode()
  assert [one.record for one in made] == ([0, 2] if policy == "drop" else [0, 1, 2, 3])
  assert max(one.length for one in made) <= 16
  if policy == "truncate_left":
    assert (
      made[1].sequences[0].tolist() == encoder.encode([records[1].fields["text"]])[0][-16:].tolist()
    )


def test_a_run_learns_and_resumes(tmp_path):
  from gptneo_jax.train import run
  from gptneo_jax.training import run_config

  path = tmp_path / "data.jsonl"
  lines = [
    {"text": f"{'good' if n % 2 else 'bad'} dog {n}", "label": "pos" if n % 2 else "neg"}
    for n in range(64)
  ]
  path.write_text("\n".join(map(json.dumps, lines)))
  config = run_config.finetune("sequence_classification", head="sequence_classification").unlock()
  config.model.update(
    hidden_size=32, num_layers=2, num_heads=2, vocab_size=320, max_position_embeddings=64
  )
  config.update(adopt_model=False, init_from="", seq_len=64, batch_size=4, epochs=4.0)
  config.data.update(path=str(path), tokenizer=str(tmp_path / "tokenizer"), validation_fraction=0.2,
                     test_fraction=0.2)  # fmt: skip
  config.optimizer.learning_rate = 3e-3
  data.save_tokenizer(trained_tokenizer(), str(tmp_path / "tokenizer"))
  assert run(config.lock(), str(tmp_path / "run")) == 0
  written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  assert written[-1]["eval/accuracy"] == 1.0
  spec = json.loads((tmp_path / "run" / "task.json").read_text())
  assert spec["labels"] == ["neg", "pos"]
  assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"] == ["neg", "pos"]
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["test_accuracy"] == summary["eval_accuracy"] == 1.0
  said = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
  assert {one["label"] for one in said} == {"neg", "pos"}
  assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in said)
  again = gptneo_jax.load(str(tmp_path / "run")).predict(["good dog 7", "bad dog 8"])
  assert [one["label"] for one in again] == ["pos", "neg"]
