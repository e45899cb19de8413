"""Instructions as examples: which tokens count, what is cut, what is refused."""

import json
import logging

import numpy as np
import pytest

from gptneo_jax import data
from gptneo_jax.data import DataError
from gptneo_jax.errors import UserError
from gptneo_jax.examples import instruction
from gptneo_jax.examples.columns import by_role
from gptneo_jax.examples.packing import Packing
from gptneo_jax.examples.records import Record, read_records
from gptneo_jax.examples.task_file import TaskSpec
from tests.helpers.text_models import make_tokenizer


@pytest.fixture(scope="module")
def encoder():
  return data.DocumentEncoder(make_tokenizer())


def spec(**changes):
  settings = {"template": "plain", "loss_on": "answer"} | changes.pop("settings", {})
  return TaskSpec("instruction", **({"max_tokens": 64, "settings": settings} | changes))


def records(*fields):
  return [Record(each, f"f.json:{n}") for n, each in enumerate(fields, 1)]


def qa(question, answer):
  return {"question": question, "answer": answer}


def messages(*texts):
  roles = ("user", "assistant") * len(texts)
  return {"messages": [{"role": r, "content": text} for r, text in zip(roles, texts)]}


def encode(encoder, spec, *fields):
  return instruction.encode(records(*fields), spec, encoder, labelled=True)


def ids_of(encoder, *texts):
  """Ids of the texts one after another; None is the end of text."""
  ids = [[encoder.end_of_text] if text is None else encoder.encode([text])[0] for text in texts]
  return np.concatenate(ids)


def test_each_token_s_target_is_the_next_and_the_answer_counts(encoder):
  (example,) = encode(encoder, spec(), qa("the fox?", "the dog"))
  ids = ids_of(encoder, "the fox?\n", "the dog", None)
  (inputs,), (targets,) = example.sequences, example.tokens["targets"]
  np.testing.assert_array_equal(np.append(inputs, targets[-1]), ids)
  np.testing.assert_array_equal(targets, ids[1:])
  prompt = len(ids_of(encoder, "the fox?\n"))
  np.testing.assert_array_equal(example.tokens["weights"][0], np.arange(1, len(ids)) >= prompt)
  assert targets[-1] == encoder.end_of_text and example.tokens["weights"][0][-1] == 1


@pytest.mark.parametrize("loss_on", instruction.LOSS_ON)
def test_what_counts_in_several_turns(encoder, loss_on):
  turns = messages("the", "fox", "lazy", "dog")
  (example,) = encode(encoder, spec(settings={"template": "chat", "loss_on": loss_on}), turns)
  parts = [("User: the\nAssistant:",), (" fox", None), ("User: lazy\nAssistant:",), (" dog", None)]
  lengths = [len(ids_of(encoder, *part)) for part in parts]
  counted = {"answer": [0, 1, 0, 1], "all": [1] * 4, "last_turn": [0, 0, 0, 1]}[loss_on]
  np.testing.assert_array_equal(example.tokens["weights"][0], np.repeat(counted, lengths)[1:])


def test_an_answer_that_spells_the_end_of_text_is_text(encoder):
  (example,) = encode(encoder, spec(), qa("the <|endoftext|> fox", "a <|endoftext|>"))
  assert (example.tokens["targets"][0] == encoder.end_of_text).sum() == 1


def test_a_row_predicts_nothing_across_examples(encoder):
  """In packed rows the targets of each segment are its own ids, and an end of text comes last."""
  made = encode(encoder, spec(), *(qa(f"fox {n}", "the dog " * n) for n in range(1, 6)))
  packing = Packing(made, 64, packed=True)
  batch = packing.batch(packing.in_order(), instruction.layout(spec()))
  for row, numbers in enumerate(packing.in_order()):
    for segment in range(1, len(numbers) + 1):
      own = batch["segment_ids"][row] == segment
      ids, targets = batch["inputs"][row, own], batch["targets"][row, own]
      np.testing.assert_array_equal(ids[1:], targets[:-1])
      assert targets[-1] == encoder.end_of_text and batch["weights"][row, own][-1] == 1
  assert not batch["weights"][batch["segment_ids"] == 0].any()


def test_a_prompt_to_answer_is_the_one_that_was_learned(encoder):
  fields = qa("the fox?", "the dog")
  (learned,) = encode(encoder, spec(), fields)
  (asked,) = instruction.encode(records(fields), spec(), encoder, labelled=False)
  (bare,) = instruction.encode(records({"question": "the fox?"}), spec(), encoder, labelled=False)
  assert not asked.tokens
  for ids in (
    bare.sequences[0],
    instruction.prompt_ids("the fox?", spec(), encoder),
    instruction.prompt_ids({"question": "the fox?"}, spec(), encoder),
    instruction.prompt_ids(messages("the fox?")["messages"], spec(), encoder),
    learned.sequences[0][: len(asked.sequences[0])],
  ):
    np.testing.assert_array_equal(asked.sequences[0], ids)
  with pytest.raises(UserError, match="the prompt is empty"):
    instruction.prompt_ids(" ", spec(), encoder)


# --- too long -------------------------------------------------------------------------------------


def test_too_long_is_refused_with_file_and_line(encoder):
  short, long = qa("fox", "dog"), qa("the fox " * 40, "dog")
  with pytest.raises(DataError, match=r"^f.json:2: \d+ tokens .* allows; 2 such example"):
    encode(encoder, spec(), short, long, long)
  made = encode(encoder, spec(on_too_long="drop"), short, long, short)
  assert [example.record for example in made] == [0, 2]


@pytest.mark.parametrize("template", ["plain", "chat", "alpaca"])
def test_a_prompt_is_cut_from_the_left_and_its_answer_never(encoder, template):
  settings = {"template": template}
  cut = spec(on_too_long="truncate_left", settings=settings)
  fields = qa("one fox " * 40, "the lazy dog")
  (whole,) = encode(encoder, spec(max_tokens=1000, settings=settings), fields)
  (example,) = encode(encoder, cut, fields)
  assert example.length == 64
  np.testing.assert_array_equal(example.sequences[0], whole.sequences[0][-64:])
  assert example.tokens["weights"][0].sum() == whole.tokens["weights"][0].sum()


def test_whole_turns_go_before_a_part_of_the_last(encoder):
  cut = spec(on_too_long="truncate_left", settings={"template": "chat"})
  old, last = ("fox " * 30, "dog " * 30), ("the fox", "the dog")
  (example,) = encode(encoder, cut, messages(*old, *last))
  (expected,) = encode(encoder, cut, messages(*last))
  np.testing.assert_array_equal(example.sequences[0], expected.sequences[0])


def test_an_answer_longer_than_a_row_is_never_cut(encoder, caplog):
  long = qa("fox", "the dog " * 60)
  with pytest.raises(DataError, match=r"^f.json:1: the answer alone has \d+ tokens, more than"):
    encode(encoder, spec(on_too_long="truncate_left"), long)
  with caplog.at_level(logging.WARNING):
    assert len(encode(encoder, spec(on_too_long="drop"), long, qa("a", "b"))) == 1
  assert "f.json:1: " in caplog.text and "1 such example" in caplog.text


def test_a_row_that_is_just_full(encoder):
  length = encode(encoder, spec(), qa("the fox", "the dog"))[0].length
  encode(encoder, spec(max_tokens=length), qa("the fox", "the dog"))
  with pytest.raises(DataError, match=f"{length} tokens are more than seq_len {length - 1}"):
    encode(encoder, spec(max_tokens=length - 1), qa("the fox", "the dog"))


# --- the rest of a kind ---------------------------------------------------------------------------


def test_the_key_is_the_prompt(encoder):
  keys = [
    instruction.key(record)
    for record in records(
      qa("Q", "A"),
      qa("Q", "B"),
      qa("q", "A"),
      messages("Q", "A"),
      messages("Q", "A", "R", "B"),
      messages("Q", "A", "R", "C"),
      messages("Q", "B", "R", "C"),
    )
  ]
  assert keys[0] == keys[1] == keys[3] and keys[4] == keys[5]
  assert len(set(keys)) == 4


def test_mistakes_of_the_settings_and_the_template(encoder):
  with pytest.raises(UserError, match="loss_on is 'answers'; did you mean answer"):
    instruction.settle([], spec(settings={"loss_on": "answers"}))
  with pytest.raises(UserError, match="template is 'chatt'; did you mean chat"):
    instruction.settle([], spec(settings={"template": "chatt"}))
  with pytest.raises(DataError, match=r"^f.json:2: the template asks for {context}"):
    encode(
      encoder, spec(settings={"template": "{context} {question}"}),
      {**qa("a", "b"), "context": "c"}, qa("a", "b"),
    )  # fmt: skip


def test_predictions_and_their_exact_match():
  said = instruction.predictions(
    [" the dog", " a fox"], [], spec(settings={"template": "chat"})
  )  # fmt: skip
  assert said == [{"answer": "the dog"}, {"answer": "a fox"}]
  metrics = instruction.metrics(said, records(qa("Q", "the dog"), qa("R", "the fox")), spec())
  assert metrics == {"exact_match": 0.5}


def test_columns_name_the_fields_and_others_stay(encoder, tmp_path):
  path = tmp_path / "rows.json"
  path.write_text(json.dumps([{"q": "the fox?", "a": "dog", "title": "T", "choices": ["dog"]}]))
  found = by_role(read_records(str(path)), instruction.ROLES, "question=q,answer=a")
  own = spec(settings={"template": "{title}: {question}\n{answer}"})
  (example,) = instruction.encode(found, own, encoder, labelled=True)
  expected = ids_of(encoder, "T: the fox?\n", "dog")
  np.testing.assert_array_equal(example.sequences[0], expected)
