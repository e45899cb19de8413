"""Multiple choice: which one is right, masks, a softmax over any number of choices."""

import jax
import numpy as np
import pytest

from gptneo_jax import data
from gptneo_jax.examples import multiple_choice
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.training.tasks.multiple_choice import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

TOKENS = {"start": 320, "delimiter": 321, "extract": 322}


def record(choices, answer, question="What jumps?", line=1) -> Record:
  return Record({"question": question, "choices": choices, "answer": answer}, f"f:{line}")


RECORDS = [
  record(["the fox", "a dog", "coração"], 1),
  record(["dog", "the quick brown fox"], 0, "Quem?", 2),
  record(["a", "b", "c", "d"], 3, "The lazy dog jumps over", 3),
]


def spec_of(records=RECORDS, **fields) -> TaskSpec:
  spec = TaskSpec("multiple_choice", fields.pop("most", 24), 96, **fields)
  return multiple_choice.settle(records, spec).replace(tokens=TOKENS)


def encoded(spec: TaskSpec, records=RECORDS):
  encoder = data.DocumentEncoder(trained_tokenizer())
  return multiple_choice.encode(records, spec, encoder, labelled=True)


# --- which is right -------------------------------------------------------------------------------


def rights(*records: Record) -> list[int]:
  spec = spec_of(records)
  return [multiple_choice.right_choice(one, spec) for one in records]


def test_an_answer_is_a_name_a_text_a_letter_or_a_number():
  named = {"text": ["x", "y", "z", "w"]}
  assert rights(record({**named, "label": list("ABCD")}, "C")) == [2]
  # letters and numbers in one file, as in ARC
  assert rights(
    record({**named, "label": list("ABCD")}, "C"), record({**named, "label": list("1234")}, "3")
  ) == [2, 2]
  assert rights(record([{"text": "x", "label": "p"}, {"text": "y", "label": "q"}], "q")) == [1]
  assert rights(record(["x", "y "], "y")) == [1]
  assert rights(record(["x", "y"], "B"), record(["x", "y"], "a")) == [1, 0]
  assert rights(record(["x", "y"], 0), record(["x", "y"], "1")) == [0, 1]
  assert rights(record(["x", "y"], 2), record(["x", "y"], 1)) == [1, 0], "counted from 1"


@pytest.mark.parametrize(
  ("choices", "answer", "message"),
  [
    (["x", "y"], "D", "the answer 'D' is none of the choices"),
    (["x", "y"], None, "the answer 'None' is none of the choices"),
    (["x"], 0, r"1 choice\(s\); there must be two"),
    ("x", 0, "the choices are 'x', not a list of texts"),
    ({"text": ["x", "y"], "label": ["A"]}, "A", r"2 choices, and their labels are \['A'\]"),
  ],
)
def test_mistakes(choices, answer, message):
  with pytest.raises(data.DataError, match=f"f:1: {message}"):
    rights(record(choices, answer))


# --- learning -------------------------------------------------------------------------------------

MODEL = packed_checks.small_model("sequence_classification", 323, num_labels=1)


def test_packed_rows_are_padded_ones():
  spec = spec_of()
  many = [*RECORDS, *RECORDS[:2]]
  made = encoded(spec, many)
  packed_checks.packed_like_padded(TASK, spec, made, MODEL, seq_len=96)


def test_rows_may_be_longer_than_the_model_has_positions():
  spec, model = spec_of(), MODEL.replace(max_position_embeddings=24)
  batch = packed_checks.batch_of(TASK, spec, encoded(spec), 96)
  longer = packed_checks.loss_of(TASK, MODEL)(params := packed_checks.params_of(MODEL), batch)
  cut = {**params, "wpe": params["wpe"][:24]}
  np.testing.assert_allclose(
    packed_checks.loss_of(TASK, model)(cut, batch)[0], longer[0], rtol=1e-6
  )


def test_nobody_else_matters():
  spec = spec_of()
  packed_checks.nobody_else_matters(TASK, spec, encoded(spec), MODEL, seq_len=96)


def test_the_loss_is_a_softmax_over_the_choices_of_each_question():
  """By the scores of each choice alone, in float64."""
  from gptneo_jax.model import heads

  spec, params = spec_of(), packed_checks.params_of(MODEL)
  made, module = encoded(spec), heads.build(MODEL)
  losses = []
  for one, right in zip(made, [1, 0, 3]):
    scores = np.array(
      [
        module.apply(
          {"params": params}, ids[None], token_B=np.array([len(ids) - 1]), method="outputs"
        )
        for ids in one.sequences
      ],
      np.float64,
    ).ravel()
    losses.append(np.log(np.exp(scores).sum()) - scores[right])
  batch = packed_checks.batch_of(TASK, spec, made, 96)
  loss, _ = packed_checks.loss_of(TASK, MODEL)(params, batch)
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_double_heads_of_gpt2():
  model = packed_checks.small_model("lm", 323).replace(
    model_type="gpt2", attention_pattern=("global",), head="double_heads"
  )
  spec = spec_of()
  packed_checks.packed_like_padded(
    TASK,
    spec,
    [*encoded(spec), *encoded(spec)],
    model,
    seq_len=96,
    **{"examples.lm_coefficient": 0.5},
  )


def test_questions_that_are_too_long():
  with pytest.raises(data.DataError, match=r"f:\d: \d+ tokens are more than seq_len 12 allows"):
    encoded(spec_of(most=12))
  cut = encoded(spec_of(most=12, on_too_long="truncate_left"))
  assert max(len(ids) for one in cut for ids in one.sequences) <= 12 and len(cut) == 3
  assert len(encoded(spec_of(most=12, on_too_long="drop"))) < 3


def test_predictions():
  spec = spec_of()
  [one] = encoded(spec, RECORDS[:1])
  [said] = multiple_choice.predictions([np.array([[0.0], [1.0], [3.0]])], [one], spec)
  assert (said["choice"], said["text"]) == (2, "coração")
  np.testing.assert_allclose(
    said["probabilities"], jax.nn.softmax(np.array([0.0, 1, 3])), rtol=1e-6
  )
  assert multiple_choice.metrics([said], RECORDS[:1], spec) == {"accuracy": 0.0}
