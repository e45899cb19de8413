"""Against conlleval's rules, written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.examples import entity_metrics
from tests.helpers import conlleval

tags = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])
pairs = st.lists(st.lists(st.tuples(tags, tags), max_size=8), min_size=1, max_size=4)


@given(pairs)
def test_the_figures_are_those_of_conlleval(sentences):
  said, true = ([[pair[side] for pair in one] for one in sentences] for side in (0, 1))
  found = entity_metrics.of_tags(said, true, ["X", "Y"])
  for of, type_ in (("", None), ("/X", "X"), ("/Y", "Y")):
    expected = conlleval.f1_of(said, true, type_)
    got = [found[name + of] for name in ("precision", "recall", "f1")]
    assert got == pytest.approx(expected, abs=1e-12)


def test_an_entity_with_one_wrong_end_is_wrong_twice():
  found = entity_metrics.of_tags([["B-X", "I-X", "O"]], [["B-X", "I-X", "I-X"]], ["X"])
  assert found["precision"] == found["recall"] == found["f1"] == 0
