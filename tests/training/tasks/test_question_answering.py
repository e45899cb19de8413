"""Extractive questions: masks, packing, where padding stands, a run that finds its answers."""

import json

import pytest

from gptneo_jax import data
from gptneo_jax.examples import question_answering
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.train import run
from gptneo_jax.training import run_config
from gptneo_jax.training.tasks.question_answering import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

CONTEXT = "The lazy dog sleeps."


def records_of(number):
  """Of every third question the answer is not in its context."""
  records = []
  for n in range(number):
    last = CONTEXT if n % 3 else "The fox jumps."
    context = " ".join(["Olá, mundo."] * (n % 4) + [last, str(n)])
    answers = [{"text": "dog", "answer_start": context.index("dog")}] if n % 3 else []
    fields = {"id": f"q{n}", "question": "Who?", "context": context, "answers": answers}
    records.append(Record(fields, f"f:{n}"))
  return records


def examples_of():
  records = records_of(7)
  settings = {"stride": 8, "max_answer_tokens": 8, "no_answer_threshold": 0.0}
  spec = question_answering.settle(records, TaskSpec("question_answering", 48, settings=settings))
  encoder = data.DocumentEncoder(trained_tokenizer())
  made = question_answering.encode(records, spec, encoder, labelled=True)
  assert max(example.length for example in made) > 2 * packed_checks.WINDOW
  return spec, made, packed_checks.small_model("question_answering", 320)


@pytest.mark.parametrize("settings", [{}, {"examples.lm_coefficient": 0.5}])
def test_packed_rows_are_padded_ones(settings):
  packed_checks.packed_like_padded(TASK, *examples_of(), **settings)


def test_nobody_else_matters():
  packed_checks.nobody_else_matters(TASK, *examples_of())


def test_padding_may_stand_anywhere():
  packed_checks.padding_may_stand_anywhere(TASK, *examples_of())


def test_no_answer_has_seen_everything():
  """Another token anywhere changes what is said of the end of text, and of no token before it."""
  spec, made, model = examples_of()
  batch = packed_checks.batch_of(TASK, spec, made[:1], 48)
  last = made[0].length - 1
  params = packed_checks.params_of(model)
  said = packed_checks.outputs_of(model, params, batch)[0]
  for place in range(last):
    other = dict(batch, inputs=batch["inputs"].copy())
    other["inputs"][0, place] += 1
    changed = (packed_checks.outputs_of(model, params, other)[0] != said).any(-1)
    assert changed[last] and not changed[:place].any()


def test_an_end_of_text_in_a_context_is_ordinary_text():
  tokenizer = trained_tokenizer()
  encoder = data.DocumentEncoder(tokenizer)
  spec = examples_of()[0]
  record = Record({"question": "Who?", "context": f"a {tokenizer.eos_token} dog"}, "f:1")
  [one] = question_answering.encode([record], spec, encoder, labelled=False)
  assert (one.sequences[0] == encoder.end_of_text).tolist() == [False] * (one.length - 1) + [True]


def test_a_run_learns(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_text("\n".join(json.dumps(one.fields) for one in records_of(48)))
  data.save_tokenizer(trained_tokenizer(), str(tmp_path / "tokenizer"))
  config = run_config.finetune("question_answering", head="question_answering").unlock()
  config.model.update(
    hidden_size=32, num_layers=2, num_heads=2, vocab_size=320, max_position_embeddings=64
  )
  config.update(adopt_model=False, init_from="", seq_len=64, batch_size=4, epochs=12.0)
  config.data.update(path=str(path), tokenizer=str(tmp_path / "tokenizer"), validation_fraction=0.2)
  config.optimizer.learning_rate = 3e-3
  assert run(config.lock(), str(tmp_path / "run")) == 0
  written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  assert written[-1]["eval/f1"] == written[-1]["eval/no_answer_accuracy"] == 1.0
  spec = json.loads((tmp_path / "run" / "task.json").read_text())
  assert spec["settings"]["unanswerable"] is True
