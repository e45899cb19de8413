"""What all kinds of examples have in common: their face, and ids that labels do not change."""

import numpy as np
import pytest

from gptneo_jax import data, examples
from gptneo_jax.errors import UserError
from gptneo_jax.examples.task_file import TaskSpec
from tests.helpers.packed_devices import SETTINGS, TOKENS, T, records_of
from tests.helpers.small_tokenizers import trained_tokenizer

PARTS = [part for part in vars(examples.Kind) if not part.startswith("_")]


@pytest.mark.parametrize("task", examples.names())
def test_a_kind_has_all_of_the_face(task):
  kind = examples.find(task)
  assert "encode" in PARTS
  assert not [part for part in (*PARTS, "ROLES", "OUTPUTS") if not hasattr(kind, part)]


def test_a_kind_that_does_not_exist():
  with pytest.raises(UserError, match="did you mean sentence_pairs"):
    examples.find("sentence_pair")


@pytest.mark.parametrize("task", [name for name in examples.names() if name != "instruction"])
def test_what_is_predicted_has_the_ids_of_training(task):
  """The same of instructions: tests/examples/test_instruction.py."""
  kind, records = examples.find(task), records_of(task)
  spec = kind.settle(records, TaskSpec(task, 48, T, "truncate_left", settings=SETTINGS))
  encoder = data.DocumentEncoder(trained_tokenizer())
  learned, predicted = (
    kind.encode(records, spec.replace(tokens=TOKENS), encoder, labelled=labelled)
    for labelled in (True, False)
  )
  assert [one.record for one in learned] == [one.record for one in predicted]
  for one, other in zip(learned, predicted):
    for ids, same in zip(one.sequences, other.sequences, strict=True):
      np.testing.assert_array_equal(ids, same)
