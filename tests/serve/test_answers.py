"""Texts as they grow: what is shown, what is held back, what a stop string cuts off."""

import hypothesis
import pytest
from hypothesis import strategies as st

from gptneo_jax.serve.answers import AnswerText, Tokens
from tests.helpers.text_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
  return make_tokenizer()


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  text=st.text(alphabet="ab é☂", max_size=30),
  stops=st.lists(st.text(alphabet="ab ☂", min_size=1, max_size=3), max_size=3),
  step=st.integers(1, 4),
)
def test_pieces_make_up_the_text_before_the_first_stop_string(tokenizer, text, stops, step):
  ids = tokenizer(text).input_ids
  whole = tokenizer.decode(ids)
  ends = [(n + len(stop), n) for stop in stops if (n := whole.find(stop)) >= 0]
  expected = whole[: min(ends)[1]] if ends else whole
  reader = AnswerText(tokenizer, tokenizer("the").input_ids, stops)
  shown = ""
  for end in range(step, len(ids), step):
    shown += reader.push(ids[:end], finished=False)
    assert expected.startswith(shown)  # nothing is taken back
  shown += reader.push(ids, finished=True)
  assert shown == expected and reader.stopped == (expected != whole)


def test_a_token_that_is_no_whole_character_is_shown_by_its_bytes(tokenizer):
  tokens = Tokens(tokenizer, len(tokenizer) + 2)
  ids = tokenizer("the 漢").input_ids
  texts = [tokens.text(i) for i in ids]
  assert texts[0].startswith("t") and texts[-1].startswith("bytes:\\x")
  assert b"".join(tokens.spelled(i) for i in ids).decode() == "the 漢"
  assert tokens.text(len(tokenizer) + 1) == ""
