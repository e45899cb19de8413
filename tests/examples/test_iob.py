"""Tags to entities: against conlleval's two tables, written out, and from scheme to scheme."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax.examples import iob
from tests.helpers import conlleval


@given(
  st.lists(
    st.sampled_from(["O", *itertools.starmap("{}-{}".format, itertools.product("BIES", "XY"))]),
    max_size=9,
  )
)
def test_entities_are_those_of_conlleval(tags):
  assert [tuple(one) for one in iob.entities(tags)] == conlleval.chunks(tags)


marked = st.lists(
  st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("XY")), max_size=4
)


def in_scheme(scheme: str, entities, length: int) -> list[str]:
  """Tags of entities, by the definition of the scheme."""
  tags = ["O"] * length
  single, last = {"IOBES": "SE", "BILOU": "UL"}.get(scheme, "  ")
  for type_, start, end in entities:
    follows = start and tags[start - 1].endswith(f"-{type_}")
    first = "I" if scheme == "IOB1" and not follows else "B"
    tags[start:end] = [first + f"-{type_}"] + [f"I-{type_}"] * (end - start - 1)
    if single.strip():
      tags[end - 1] = (single if end - start == 1 else last) + f"-{type_}"
  return tags


@given(marked, st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU"]))
def test_schemes_give_the_same_entities(parts, scheme):
  entities, at = [], 0
  for gap, length, type_ in parts:
    entities.append(iob.Entity(type_, at + gap, at + gap + length))
    at += gap + length
  tags = in_scheme(scheme, entities, at + 1)
  assert iob.entities(tags) == entities
  assert iob.tags(entities, at + 1) == in_scheme("IOB2", entities, at + 1)


def test_labels_are_complete():
  assert iob.labels({"PER", "LOC"}) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.mark.parametrize(
  "tag, is_one", [("B-X", True), ("I-a-b", True), ("O", False), ("B", False), ("X-B", False)]
)
def test_tags(tag, is_one):
  assert iob.is_tag(tag) == is_one
