"""Pairs: their ids, masks, both orders."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax import data
from gptneo_jax.examples import delimited, sentence_pairs
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.training.example_task import add_tokens
from gptneo_jax.training.tasks.sentence_pairs import TASK
from tests.helpers import packed_checks
from tests.helpers.small_tokenizers import trained_tokenizer

TOKENS = {"start": 320, "delimiter": 321, "extract": 322}
RECORDS = [
  Record({"first": first, "second": second, "label": label}, f"f:{n}")
  for n, (first, second, label) in enumerate(
    [
      ("the lazy dog", "fox", "yes"),
      ("fox", "the fox jumps over it", "no"),
      ("ação e coração", "Olá", "maybe"),
      ("dog", "dog", "yes"),
      ("brown fox jumps", "", "no"),
    ]
  )
]


def spec_of(*, most: int = 48, on_too_long: str = "stop", **settings) -> TaskSpec:
  spec = TaskSpec("sentence_pairs", most, 64, on_too_long, settings=settings)
  return sentence_pairs.settle(RECORDS, spec).replace(tokens=TOKENS)


def encoded(spec: TaskSpec, records=RECORDS):
  encoder = data.DocumentEncoder(trained_tokenizer())
  return sentence_pairs.encode(records, spec, encoder, labelled=True)


MODEL = packed_checks.small_model(
  "sequence_classification", 323, num_labels=3, problem_type="single_label_classification"
)


def test_a_pair_is_start_first_delimiter_second_extract():
  encoder = data.DocumentEncoder(trained_tokenizer())
  first, second = (ids.tolist() for ids in encoder.encode(["the lazy dog", "fox"]))
  one, both = encoded(spec_of())[0], encoded(spec_of(both_orders=True))[0]
  assert [ids.tolist() for ids in one.sequences] == [[320, *first, 321, *second, 322]]
  assert [ids.tolist() for ids in both.sequences] == [
    [320, *first, 321, *second, 322],
    [320, *second, 321, *first, 322],
  ]
  assert both.values["weights"] == (1.0, 0.0)
  assert all(ids[at] == 322 for ids, at in zip(both.sequences, both.values["pooled"]))


def test_the_tokens_of_a_pair_are_special_ones_after_the_others():
  tokenizer = copy.deepcopy(trained_tokenizer())
  assert add_tokens(tokenizer, delimited.TOKENS) == TOKENS
  assert add_tokens(tokenizer, delimited.TOKENS) == TOKENS, "once"
  ids = tokenizer("<|start|>fox<|extract|>").input_ids
  assert (ids[0], ids[-1], len(tokenizer)) == (320, 322, 323)
  assert tokenizer.decode(ids, skip_special_tokens=True) == "fox"
  assert add_tokens(tokenizer, {}) == {}


@pytest.mark.parametrize("both_orders", [False, True])
def test_packed_rows_are_padded_ones(both_orders):
  spec = spec_of(both_orders=both_orders)
  packed_checks.packed_like_padded(TASK, spec, encoded(spec), MODEL)


def test_nobody_else_matters():
  spec = spec_of(both_orders=True)
  packed_checks.nobody_else_matters(TASK, spec, encoded(spec), MODEL)


def test_the_order_does_not_matter_where_both_are_read():
  spec = spec_of(both_orders=True)
  turned = [
    Record({**r.fields, "first": r.fields["second"], "second": r.fields["first"]}, r.location)
    for r in RECORDS
  ]
  step, params = packed_checks.loss_of(TASK, MODEL), packed_checks.params_of(MODEL)
  losses = [
    float(step(params, packed_checks.batch_of(TASK, spec, encoded(spec, records), 64))[0])
    for records in (RECORDS, turned)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-6)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(4, 40))
def test_a_cut_pair_keeps_the_ends_of_both(first, second, most):
  ids = np.arange(first, dtype=np.int32), np.arange(100, 100 + second, dtype=np.int32)
  kept = delimited.cut(*ids, most)
  assert sum(map(len, kept)) == min(first + second, most - 3)
  for part, before in zip(kept, ids):
    np.testing.assert_array_equal(part, before[len(before) - len(part) :])
  lost = [len(before) - len(part) for part, before in zip(kept, ids)]
  if all(lost):  # the longer one loses first
    assert abs(len(kept[0]) - len(kept[1])) <= 1


def test_pairs_that_are_too_long():
  with pytest.raises(data.DataError, match=r"f:1: \d+ tokens are more than seq_len 12 allows"):
    encoded(spec_of(most=12))
  cut = encoded(spec_of(most=12, on_too_long="truncate_left"))
  assert max(one.length for one in cut) == 12 and len(cut) == 5
