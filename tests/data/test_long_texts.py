"""Long texts cut into parts: the ids of the parts are those of the text."""

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.data import long_texts
from gptneo_jax.data.tokenizer import END_OF_TEXT, DocumentEncoder, load_tokenizer
from tests.helpers.small_tokenizers import TEXT, trained_tokenizer

SPACES = " \n\t\r\v\f\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u3000"
characters = st.one_of(
  st.sampled_from(SPACES),
  st.sampled_from("  \n'sdt1é日🙂!\u0301\u0345¨"),
  st.characters(codec="utf-8"),
)
long_text = st.lists(
  st.one_of(st.text(characters, max_size=8), st.sampled_from([END_OF_TEXT, "don't", "   ", "  x"]))
).map("".join)


@pytest.fixture(scope="module")
def trained():
  return trained_tokenizer()


def neox_like():
  """Like GPT-NeoX-20B's: composed characters, and runs of spaces that are found before words."""
  import tokenizers

  backend = tokenizers.Tokenizer.from_str(trained_tokenizer(300).backend_tokenizer.to_str())
  backend.normalizer = tokenizers.normalizers.NFC()
  backend.add_tokens([" " * count for count in range(2, 6)] + ["\n\n", "don't"])
  return backend


def with_prefix_space():
  import tokenizers

  backend = neox_like()
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  return backend


@pytest.fixture(scope="module")
def backends(shared_data, trained):
  """Tokenizers that read special tokens in a text as text, each with its cutter."""
  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer")).backend_tokenizer
  found = [gpt2, trained.backend_tokenizer, neox_like(), with_prefix_space()]
  found = [copy.deepcopy(backend) for backend in found]
  for backend in found:
    backend.encode_special_tokens = True
  return [(backend, long_texts.make_cutter(backend)) for backend in found]


@settings(deadline=None, max_examples=300)
@given(text=long_text, size=st.integers(1, 5))
@example("a \u0301b  c \n d", 1)
def test_parts_have_the_ids_of_the_text(backends, text, size):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(long_texts, "PART_CHARACTERS", size)
    for backend, cut in backends:
      parts = list(cut(text))
      assert "".join(parts) == text
      encodings = backend.encode_batch_fast(parts, add_special_tokens=False)
      ids = [i for encoding in encodings for i in encoding.ids]
      assert ids == backend.encode(text, add_special_tokens=False).ids


def test_long_texts_are_cut_and_have_the_same_ids(trained, monkeypatch):
  encoder = DocumentEncoder(trained)
  long = TEXT * 60 + "x" * 50_000 + TEXT * 100 + END_OF_TEXT + TEXT
  backend = copy.deepcopy(trained.backend_tokenizer)
  backend.encode_special_tokens = True
  assert len(list(long_texts.make_cutter(backend)(long))) > 3
  expected = [backend.encode(text).ids for text in (long, "", "a", long[5:])]
  calls, encode = [], encoder._encode
  monkeypatch.setattr(encoder, "_encode", lambda texts: calls.append(texts) or encode(texts))
  for ids in (encoder.encode([long, "", "a", long[5:]]),
              encoder.encode_later([long, "", "a", long[5:]]).result()):  # fmt: skip
    assert [own.tolist() for own in ids] == expected
  assert max(sum(map(len, texts)) for texts in calls) < 400_000 < len(long) * 2
  encoder.close()


def test_where_ids_could_change_nothing_is_cut():
  from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

  def parts(pre_tokenizer=None, normalizer=None, token=None):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
      backend.normalizer = normalizer
    if token:
      backend.add_tokens([token])
    return len(list(long_texts.make_cutter(backend)("some words " * 9000)))

  assert parts() == 4
  assert parts(token=AddedToken("  ", lstrip=True)) == 4
  assert parts(pre_tokenizers.Metaspace()) == 1
  assert parts(pre_tokenizers.ByteLevel(use_regex=False)) == 1
  assert parts(normalizer=normalizers.Replace("s w", "x")) == 1
  assert parts(token=AddedToken("some words")) == 1
  assert parts(token=AddedToken("words", rstrip=True)) == 1
