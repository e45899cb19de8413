"""Instructions: masks, packing, the end of text, a run that learns to answer."""

import json

import jax
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data, generate
from gptneo_jax.examples import instruction
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.train import run
from gptneo_jax.training import run_config
from gptneo_jax.training.tasks.instruction import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

PAIRS = [
  ("the lazy dog", "fox"),
  ("Olá, mundo?", "ação e coração"),
  ("fox", "The quick brown fox jumps over it"),
  ("e a ação", "dog"),
  ("jumps the fox over the lazy dog?", "ação. ação."),
]


def examples_of(loss_on="answer", template="chat"):
  spec = TaskSpec("instruction", 64, settings={"template": template, "loss_on": loss_on})
  records = [Record({"question": q, "answer": a}, f"f:{n}") for n, (q, a) in enumerate(PAIRS, 1)]
  messages = [
    {"role": ("user", "assistant")[n % 2], "content": text}
    for n, text in enumerate(("fox?", "dog", "the dog?", "ação"))
  ]
  records.append(Record({"messages": messages}, "f:9"))
  encoder = data.DocumentEncoder(trained_tokenizer())
  made = instruction.encode(records, spec, encoder, labelled=True)
  return spec, made, packed_checks.small_model("lm", 320)


@pytest.mark.parametrize("loss_on", instruction.LOSS_ON)
def test_packed_rows_are_padded_ones(loss_on):
  spec, made, model = examples_of(loss_on)
  packed_checks.packed_like_padded(TASK, spec, made, model)


def test_nobody_else_matters():
  spec, made, model = examples_of()
  packed_checks.nobody_else_matters(TASK, spec, made, model)


def test_labels_of_prompts_and_padding_change_nothing():
  spec, made, model = examples_of()
  step, params = packed_checks.loss_of(TASK, model), packed_checks.params_of(model)
  batch = packed_checks.batch_of(TASK, spec, made, 64)
  loss, grads = step(params, batch)
  other = dict(batch, targets=np.where(batch["weights"] > 0, batch["targets"], 9))
  assert (other["targets"] != batch["targets"]).any()
  same, others = step(params, other)
  assert loss == same
  for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(others)):
    np.testing.assert_array_equal(one, two)


def test_the_end_of_text_is_learned_where_padding_has_its_id():
  spec, made, model = examples_of()
  tokenizer = trained_tokenizer()
  assert tokenizer.pad_token_id in (None, tokenizer.eos_token_id)
  step, params = packed_checks.loss_of(TASK, model), packed_checks.params_of(model)
  batch = packed_checks.batch_of(TASK, spec, made, 64)
  ends = batch["targets"] == tokenizer.eos_token_id
  assert (batch["weights"][ends & (batch["segment_ids"] > 0)] == 1).all()
  assert (ends & (batch["weights"] > 0)).sum() == len(made) + 1  # of a talk's two answers both
  without = dict(batch, weights=np.where(ends, 0, batch["weights"]).astype(np.float32))
  assert step(params, batch)[0] != step(params, without)[0]


def small_run(folder, records, **changes):
  path = folder / "data.json"
  path.write_text(json.dumps(records))
  data.save_tokenizer(trained_tokenizer(), str(folder / "tokenizer"))
  config = run_config.finetune("instruction").unlock()
  config.model.update(
    hidden_size=64, num_layers=2, num_heads=2, vocab_size=320, max_position_embeddings=64
  )
  config.update(adopt_model=False, init_from="", seq_len=64, batch_size=2, every_epoch=False)
  config.update(eval_every=0, epochs=60.0)
  config.data.update(path=str(path), tokenizer=str(folder / "tokenizer"), validation_fraction=0.0)
  config.optimizer.learning_rate = 3e-3
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  assert run(config.lock(), str(folder / "run")) == 0
  return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]


def test_a_run_learns_its_answers_and_the_command_gives_them(tmp_path, capsys):
  """All that a newcomer does: two commands."""
  records = [{"question": q, "answer": a, "choices": [a]} for q, a in PAIRS]
  written = small_run(tmp_path, records)
  assert written[-1]["train/exact_match"] == 1.0
  said = capsys.readouterr().out
  assert "training exact match 1.0000\n  | the lazy dog\n  |  ⏵ fox\n  | expected: fox" in said
  folder = str(tmp_path / "run")
  for question, answer in PAIRS:
    generate.main(["--checkpoint", folder, "--prompt", question])
    assert capsys.readouterr().out == f"{answer}\n"
  lm = gptneo_jax.load(folder)
  assert lm.task.settings["template"] == "plain"
  made = lm.generate([lm.prompt_ids(PAIRS[0][0])], max_new_tokens=20)
  assert made.sequences[0][-1] == lm.tokenizer.eos_token_id


def test_what_is_held_out_is_measured(tmp_path):
  records = [{"prompt": f"the {n}", "completion": f"dog {n % 3}"} for n in range(40)]
  written = small_run(
    tmp_path, records, epochs=1.0, data__validation_fraction=0.3, examples__template="chat"
  )
  last = written[-1]
  assert {"eval/loss", "eval/perplexity", "eval/token_accuracy", "eval/exact_match"} <= last.keys()
  assert last["eval/perplexity"] == pytest.approx(np.exp(last["eval/loss"]))
