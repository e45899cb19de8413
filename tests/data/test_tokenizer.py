"""Tokenizers: learning, loading, saving; no text can contain the end of text."""

import copy
import json
import logging
import random
import shutil
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.data import cuts, learning
from gptneo_jax.data import tokenizer as tokenizer_module
from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.evaluation import evaluation_documents, mixed_documents
from gptneo_jax.data.tokenizer import (
  END_OF_TEXT,
  DocumentEncoder,
  check_vocabulary,
  end_of_text_id,
  load_tokenizer,
  save_tokenizer,
  saved_tokenizer,
)

TEXT = "The quick brown fox jumps over the lazy dog. Olá, mundo: ação e coração. " * 30


def documents(*texts):
  return [Document(text, "s", "f:1") for text in texts or (TEXT, TEXT.upper())]


@pytest.fixture(scope="module")
def learned():
  return load_tokenizer("train", documents=documents(), vocab_size=320)


def test_learned_tokenizer(learned):
  assert len(learned) == 320
  assert learned.bos_token == learned.eos_token == learned.unk_token == END_OF_TEXT
  assert learned.decode(DocumentEncoder(learned).encode([TEXT])[0]) == TEXT
  assert end_of_text_id(learned) == learned.convert_tokens_to_ids(END_OF_TEXT)
  assert end_of_text_id(learned) is not None


def test_learning_is_deterministic(learned):
  again = load_tokenizer("train", documents=documents(), vocab_size=320)
  assert again.backend_tokenizer.to_str() == learned.backend_tokenizer.to_str()
  assert DocumentEncoder(again).fingerprint() == DocumentEncoder(learned).fingerprint()
  other = load_tokenizer("train", documents=documents(), vocab_size=300)
  assert DocumentEncoder(other).fingerprint() != DocumentEncoder(learned).fingerprint()


@pytest.mark.parametrize("remote", [False, True])
def test_learned_tokenizer_is_saved_and_found_again(tmp_path, remote):
  folder = "memory://run/tokenizer" if remote else str(tmp_path / "deep" / "tokenizer")
  assert saved_tokenizer(folder) is None
  first = load_tokenizer("train", documents=documents(), vocab_size=320)
  save_tokenizer(load_tokenizer("train", documents=documents(), vocab_size=300), folder)
  save_tokenizer(first, folder)
  again = saved_tokenizer(folder)
  assert again.get_vocab() == first.get_vocab()
  assert again.eos_token_id == first.eos_token_id
  assert again.encode("a<|endoftext|>b") == first.encode("a<|endoftext|>b")
  if not remote:
    assert load_tokenizer(folder).get_vocab() == first.get_vocab()


def test_only_a_bounded_sample_is_read(monkeypatch):
  monkeypatch.setattr(learning, "SAMPLE_BYTES", 5000)
  read = []

  def endless():
    while True:
      read.append(TEXT)
      yield documents(TEXT)[0]

  load_tokenizer("train", documents=endless(), vocab_size=300)
  assert sum(len(text.encode()) for text in read) < 5000 + 2 * len(TEXT.encode())


def test_nothing_to_learn_from():
  with pytest.raises(DataError, match="no training text"):
    load_tokenizer("train", documents=[], vocab_size=300)
  with pytest.raises(DataError, match="257 or more"):
    load_tokenizer("train", documents=documents(), vocab_size=256)


def test_mixture_shows_every_source_to_the_learner(tmp_path):
  mixture = []
  for name, weight in (("a", 3), ("b", 1)):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": name * 10}) + "\n" for _ in range(40)))
    mixture.append((weight, "jsonl", str(path)))
  config = DataConfig(source="mixture", mixture=mixture, validation_fraction=0)
  names = [document.text[0] for document in mixed_documents(config)]
  assert names[:40].count("a") == 30
  assert sorted(names) == sorted("a" * 40 + "b" * 40)
  plain = DataConfig(source="jsonl", path=mixture[0][2], validation_fraction=0)
  assert list(mixed_documents(plain)) == list(evaluation_documents(plain, "train"))


pieces = st.sampled_from([END_OF_TEXT, "<|", "|>", "endoftext", " ", "<", "é", "<|endoftext", "\n"])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=12).map("".join))
@example(END_OF_TEXT)
@example(f"a{END_OF_TEXT * 2} b")
def test_no_text_contains_the_end_of_text(learned, text):
  text = text.encode("utf-8", "ignore").decode()
  encoder = DocumentEncoder(learned)
  ids = encoder.encode([text])[0]
  assert encoder.end_of_text not in ids
  assert learned.decode(ids) == text


def test_texts_are_encoded_alike_now_and_later(learned):
  encoder = DocumentEncoder(learned)
  # Long ones on average go to the tokenizer one by one, short ones together.
  for texts in ([], [""], ["a", "", "b c"], [TEXT * 200, "", "a", TEXT]):
    now, later = encoder.encode(texts), encoder.encode_later(texts).result()
    assert [ids.tolist() for ids in later] == [ids.tolist() for ids in now]
    assert all(ids.dtype == np.int32 for ids in later)
  encoder.close()


SPACES = " \n\t\r\v\f\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u3000"
characters = st.one_of(
  st.sampled_from(SPACES),
  st.sampled_from("  \n'sdt1é日🙂!\u0301\u0345¨"),
  st.characters(codec="utf-8"),
)
long_text = st.lists(
  st.one_of(st.text(characters, max_size=8), st.sampled_from([END_OF_TEXT, "don't", "   ", "  x"]))
).map("".join)


def neox_like():
  """As GPT-NeoX-20B's: characters composed, and runs of spaces that are found before words."""
  import tokenizers

  backend = tokenizers.Tokenizer.from_str(
    load_tokenizer("train", documents=documents(), vocab_size=300).backend_tokenizer.to_str()
  )
  backend.normalizer = tokenizers.normalizers.NFC()
  backend.add_tokens([" " * count for count in range(2, 6)] + ["\n\n", "don't"])
  return backend


def with_prefix_space():
  import tokenizers

  backend = neox_like()
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  return backend


@pytest.fixture(scope="module")
def backends(shared_data, learned):
  """Tokenizers of which special tokens in a text are text, each with what cuts for it."""
  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer")).backend_tokenizer
  found = [gpt2, learned.backend_tokenizer, neox_like(), with_prefix_space()]
  found = [copy.deepcopy(backend) for backend in found]
  for backend in found:
    backend.encode_special_tokens = True
  return [(backend, cuts.cutter(backend)) for backend in found]


@settings(deadline=None, max_examples=300)
@given(text=long_text, size=st.integers(1, 5))
@example("a \u0301b  c \n d", 1)
def test_parts_of_a_text_have_the_ids_of_the_whole(backends, text, size):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cuts, "PART", size)
    for backend, cut in backends:
      parts = list(cut(text))
      assert "".join(parts) == text
      encodings = backend.encode_batch_fast(parts, add_special_tokens=False)
      ids = [i for encoding in encodings for i in encoding.ids]
      assert ids == backend.encode(text, add_special_tokens=False).ids


def test_long_texts_are_cut_and_have_the_same_ids(learned, monkeypatch):
  encoder = DocumentEncoder(learned)
  long = TEXT * 60 + "x" * 50_000 + TEXT * 100 + END_OF_TEXT + TEXT
  whole = copy.deepcopy(learned.backend_tokenizer)
  whole.encode_special_tokens = True
  assert len(list(cuts.cutter(whole)(long))) > 3
  expected = [whole.encode(text).ids for text in (long, "", "a", long[5:])]
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
    return len(list(cuts.cutter(backend)("some words " * 9000)))

  assert parts() == 4
  assert parts(token=AddedToken("  ", lstrip=True)) == 4
  assert parts(pre_tokenizers.Metaspace()) == 1
  assert parts(pre_tokenizers.ByteLevel(use_regex=False)) == 1
  assert parts(normalizer=normalizers.Replace("s w", "x")) == 1
  assert parts(token=AddedToken("some words")) == 1
  assert parts(token=AddedToken("words", rstrip=True)) == 1


@pytest.mark.parametrize("letters", ["ACGT", "="])
def test_learning_from_a_stretch_without_spaces_is_bounded(letters, capsys):
  """Without a bound, the letters take 40 s of a core, and the ruler becomes a token of 400,000."""
  stretch = "".join(random.Random(0).choices(letters, k=400_000))
  start = time.process_time()
  learned = load_tokenizer("train", documents=documents(stretch), vocab_size=1000)
  assert time.process_time() - start < 15
  assert max(map(len, learned.get_vocab())) <= 256
  assert "learning a tokenizer of 1000 entries from 1 documents" in capsys.readouterr().err
  assert learned.decode(DocumentEncoder(learned).encode([stretch])[0]) == stretch


def test_words_are_learned_as_without_the_bound(monkeypatch, learned):
  monkeypatch.setattr(learning, "STRETCH_BYTES", 10**6)
  unbounded = load_tokenizer("train", documents=documents(), vocab_size=320)
  assert unbounded.backend_tokenizer.to_str() == learned.backend_tokenizer.to_str()


def test_tokenizer_that_has_no_ids_for_some_texts():
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, END_OF_TEXT: 1}))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)
  with pytest.raises(DataError, match=r"cannot encode every text: .*\[UNK\]"):
    DocumentEncoder(tokenizer)


def test_callers_tokenizer_is_not_changed(learned):
  learned.backend_tokenizer.enable_truncation(5)
  learned.backend_tokenizer.enable_padding(length=9)
  try:
    ids = DocumentEncoder(learned).encode([TEXT, "a"])
    assert len(ids[0]) > 100
    assert len(ids[1]) == 1
    assert learned.backend_tokenizer.truncation["max_length"] == 5
    assert learned.backend_tokenizer.padding["length"] == 9
    assert not learned.backend_tokenizer.encode_special_tokens
  finally:
    learned.backend_tokenizer.no_truncation()
    learned.backend_tokenizer.no_padding()


def test_end_of_text_that_is_not_special_is_refused():
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  with pytest.raises(DataError, match="neither an end-of-sequence token"):
    end_of_text_id(tokenizer)
  tokenizer.eos_token = "end"
  with pytest.raises(DataError, match="as a special token"):
    DocumentEncoder(tokenizer)


def test_no_warning_about_length(shared_data, caplog, recwarn):
  gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
  with caplog.at_level(logging.WARNING):
    assert len(DocumentEncoder(gpt2).encode([TEXT * 20])[0]) > gpt2.model_max_length
  assert not caplog.records
  assert end_of_text_id(gpt2) == 50256


def test_end_of_text_with_id_zero(shared_data):
  tokenizer = load_tokenizer(str(shared_data / "checkpoints" / "neo_docs_hf"))
  assert end_of_text_id(tokenizer) == 0
  assert 0 not in DocumentEncoder(tokenizer).encode([END_OF_TEXT])[0]


def test_vocabulary_larger_than_the_models(learned):
  check_vocabulary(learned, 320)
  check_vocabulary(learned, 384)
  with pytest.raises(DataError, match=r"320 ids.* holds 319"):
    check_vocabulary(learned, 319)


def test_special_tokens_without_a_row_are_no_larger_vocabulary(learned):
  """[PAD] added without resizing the model: no document can give it."""
  tokenizer = copy.deepcopy(learned)
  size = tokenizer_module.vocabulary_size(tokenizer)
  tokenizer.add_special_tokens({"pad_token": "[PAD]"})
  assert tokenizer_module.vocabulary_size(tokenizer) == size + 1
  check_vocabulary(tokenizer, size)
  assert max(DocumentEncoder(tokenizer).encode(["a [PAD] b"])[0]) < size
  tokenizer.add_tokens(["qqq"])  # a text can give this one
  with pytest.raises(DataError, match=f"tokenizer has {size + 2} ids"):
    check_vocabulary(tokenizer, size)


def test_prefix_space_is_obeyed_where_autotokenizer_does(learned, tmp_path):
  """add_prefix_space of tokenizer_config.json, which tokenizer.json may contradict."""
  from transformers import AutoTokenizer

  for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
    learned.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), "add_prefix_space": True, "tokenizer_class": name}
    path.write_text(json.dumps(fields))
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert ours("the dog").input_ids == theirs("the dog").input_ids
    obeyed = ours("the dog").input_ids == learned(" the dog").input_ids
    assert obeyed == name.startswith("GPT2")


def test_tokenizer_that_is_not_there(tmp_path, monkeypatch):
  for name in (f"{tmp_path}/none", "./none", "a/b/c"):
    with pytest.raises(DataError, match="no such folder") as caught:
      load_tokenizer(name)
    assert name in str(caught.value)
  with pytest.raises(DataError, match="cannot be loaded") as caught:
    load_tokenizer(str(tmp_path))
  assert "\n" not in str(caught.value)
  import huggingface_hub

  def unreachable(self, name, **options):
    raise ConnectionError("no route to the hub\nmore lines")

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
  with pytest.raises(DataError, match=r"'nobody/nothing': no such folder.*no route to the hub$"):
    load_tokenizer("nobody/nothing")


@pytest.fixture(scope="module")
def saved(learned, tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  learned.save_pretrained(folder)
  return folder


DAMAGES = {
  "empty": ("tokenizer.json", lambda text: "", "tokenizer.json: the file is empty"),
  "cut off": ("tokenizer.json", lambda text: text[:500], r"tokenizer.json: damaged \("),
  "LFS": (
    "tokenizer.json",
    lambda text: "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "tokenizer.json: a Git LFS pointer",
  ),
  "unknown type": (
    "tokenizer.json",
    lambda text: text.replace('"BPE"', '"Other"'),
    "cannot be loaded: data did not match",
  ),
  "settings": ("tokenizer_config.json", lambda text: text[:9], "tokenizer_config.json: damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_one_line_that_names_the_file(saved, tmp_path, damage):
  name, change, message = DAMAGES[damage]
  folder = tmp_path / "tokenizer"
  shutil.copytree(saved, folder)
  (folder / name).write_text(change((folder / name).read_text()))
  for load in (load_tokenizer, tokenizer_module.saved_tokenizer):
    with pytest.raises(DataError, match=message) as caught:
      load(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
  if name == "tokenizer.json":  # a file by itself too
    with pytest.raises(DataError, match=message.removeprefix("tokenizer.json: ")):
      load_tokenizer(str(folder / name))


def test_file_by_itself(saved, tmp_path, learned):
  path = tmp_path / "20B_tokenizer.json"
  shutil.copy(saved / "tokenizer.json", path)
  tokenizer = load_tokenizer(str(path))
  assert tokenizer.get_vocab() == learned.get_vocab()
  assert DocumentEncoder(tokenizer).fingerprint() == DocumentEncoder(learned).fingerprint()


def test_vocabulary_and_merges_by_themselves(tmp_path, shared_data):
  whole = shared_data / "gpt2_tokenizer"
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(whole / name, tmp_path / name)
  encoders = [DocumentEncoder(load_tokenizer(str(folder))) for folder in (tmp_path, whole)]
  assert encoders[0].fingerprint() == encoders[1].fingerprint()
  assert encoders[0].encode([TEXT])[0].tolist() == encoders[1].encode([TEXT])[0].tolist()
  (tmp_path / "vocab.json").write_text('{"<s>": 0, "a": 1}')
  with pytest.raises(
    DataError, match=r"are not GPT-2's; tokenizer_config\.json or tokenizer\.json"
  ):
    load_tokenizer(str(tmp_path))
  (tmp_path / "vocab.json").write_text('{"<s>": 0')
  with pytest.raises(DataError, match=r"vocab\.json: damaged"):
    load_tokenizer(str(tmp_path))


def test_message_of_several_lines_is_not_cut(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  (tmp_path / "vocab.json").write_text("{}")
  with pytest.raises(DataError, match="cannot be loaded") as caught:
    load_tokenizer(str(tmp_path))
  assert "\n" not in str(caught.value) and not str(caught.value).endswith(("of:", "of: "))
