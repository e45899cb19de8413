"""What texts go through: the rules of those who wrote them."""

import dataclasses
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax.data.documents import DataError
from gptneo_jax.data.prepare import cleaning, units
from gptneo_jax.data.prepare.inputs import Part, Settings
from gptneo_jax.data.token_shards import TokenShards
from tests.helpers.data_rows import byte_tokenizer, write_shards

PIECES = [*"sN 's'\"()[]{}=:;.!?,°\na", " @-@ ", " @,@ ", " . ", " N ", "/' 5/", "= = = ="]


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_wikitext_as_the_harness_does(pieces):
  task = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
  text = "".join(pieces)
  assert cleaning.wikitext_detokenized(text) == task.wikitext_detokenizer({"page": text})


@given(text=st.text(max_size=60))
def test_nfc(text):
  cleaned = cleaning.cleaner("nfc")(text)
  assert cleaning.nfc(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
  assert not set(cleaned) & set("\r\0\x7f\ufeff")
  if text.isascii() and text.isprintable():
    assert cleaned == text


def test_broken_encodings():
  pytest.importorskip("ftfy")
  assert cleaning.cleaner("ftfy")("schÃ¶n, ﬁn") == "schön, fin"
  assert cleaning.cleaner("original")("x² , schÃ¶n") == "x2, schön"


def test_without_ftfy(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
  with pytest.raises(DataError, match="--clean original needs ftfy"):
    cleaning.cleaner("original")


def test_in_shards(tmp_path):
  """A text of which nothing is left is no document; the others change before they are compared."""
  path = write_shards(tmp_path, [["a\r\nb", "\0", "e\u0301", "a\nb", "c"]])
  byte_tokenizer().save_pretrained(str(tmp_path / "bytes"))
  made = Settings(path, str(tmp_path / "bytes"), validation_fraction=0.0, clean="nfc")
  units.begin(made, tmp_path / "s")
  list(units.run(made, tmp_path / "s", Part(0, 1), pytest.fail))
  shards, end = TokenShards(str(tmp_path / "s")), byte_tokenizer().eos_token_id
  texts = ["a\nb", "\u00e9", "a\nb", "c"]
  ids = [i for text in texts for i in [*byte_tokenizer()(text).input_ids, end]]
  assert shards.ids(0, shards.tokens).tolist() == ids
  with pytest.raises(DataError, match='was made with another clean, "nfc", and now it is "none"'):
    units.begin(dataclasses.replace(made, clean="none"), tmp_path / "s")
