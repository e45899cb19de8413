"""Token classification: masks, packing, where padding stands, a run that learns its entities."""

import json

import numpy as np
import pytest

from gptneo_jax import data
from gptneo_jax.examples import token_classification
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.train import run
from gptneo_jax.training import run_config
from gptneo_jax.training.tasks.token_classification import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

WORDS = ["The", "lazy", "dog", "Olá", "mundo", "fox", "jumps"]


def records_of(number):
  records = []
  for n in range(number):
    words = [WORDS[(n + k) % 7] for k in range(3 + 3 * (n % 4))]
    tags = ["B-A" if word == "dog" else "O" for word in words]
    records.append(Record({"tokens": words, "labels": tags}, f"f:{n}"))
  return records


def examples_of():
  records = records_of(7)
  spec = TaskSpec("token_classification", 48, settings={"stride": 8})
  spec = token_classification.settle(records, spec)
  encoder = data.DocumentEncoder(trained_tokenizer())
  made = token_classification.encode(records, spec, encoder, labelled=True)
  assert max(example.length for example in made) > 2 * packed_checks.WINDOW
  return spec, made, packed_checks.small_model("token_classification", 320, num_labels=3)


@pytest.mark.parametrize(
  "settings", [{}, {"examples.lm_coefficient": 0.5}, {"label_smoothing": 0.1}]
)
def test_packed_rows_are_padded_ones(settings):
  packed_checks.packed_like_padded(TASK, *examples_of(), **settings)


def test_nobody_else_matters():
  packed_checks.nobody_else_matters(TASK, *examples_of())


def test_padding_may_stand_anywhere():
  packed_checks.padding_may_stand_anywhere(TASK, *examples_of())


def test_labels_are_smoothed():
  spec, made, model = examples_of()
  batch, params = packed_checks.batch_of(TASK, spec, made, 64), packed_checks.params_of(model)
  plain, smoothed, even = (
    packed_checks.loss_of(TASK, model, label_smoothing=share)(params, batch)[0]
    for share in (0.0, 0.1, 0.9)
  )
  np.testing.assert_allclose(smoothed - plain, (even - plain) / 9, atol=1e-6)


def test_a_run_learns(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text("\n".join(json.dumps(one.fields) for one in records_of(48)))
  data.save_tokenizer(trained_tokenizer(), str(tmp_path / "tokenizer"))
  config = run_config.finetune("token_classification", head="token_classification").unlock()
  config.model.update(
    hidden_size=32, num_layers=2, num_heads=2, vocab_size=320, max_position_embeddings=64
  )
  config.update(adopt_model=False, init_from="", seq_len=64, batch_size=4, epochs=12.0)
  config.data.update(path=str(path), tokenizer=str(tmp_path / "tokenizer"), validation_fraction=0.2)
  config.optimizer.learning_rate = 3e-3
  assert run(config.lock(), str(tmp_path / "run")) == 0
  written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  assert written[-1]["eval/f1"] == written[-1]["eval/f1/A"] == 1.0
  spec = json.loads((tmp_path / "run" / "task.json").read_text())
  assert spec["labels"] == ["O", "B-A", "I-A"]
