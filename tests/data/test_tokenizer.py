"""Tokenizers: loading, saving, encoding; no text can contain the end of text."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptneo_jax.data import tokenizer as tokenizer_module
from gptneo_jax.data.documents import DataError
from gptneo_jax.data.tokenizer import (
  END_OF_TEXT,
  DocumentEncoder,
  check_vocabulary,
  end_of_text_id,
  load_tokenizer,
  save_tokenizer,
  saved_tokenizer,
)
from tests.helpers.small_tokenizers import TEXT, trained_tokenizer


@pytest.fixture(scope="module")
def trained():
  return trained_tokenizer()


@pytest.mark.parametrize("remote", [False, True])
def test_a_trained_tokenizer_is_saved_and_found_again(tmp_path, remote):
  folder = "memory://run/tokenizer" if remote else str(tmp_path / "deep" / "tokenizer")
  assert saved_tokenizer(folder) is None
  first = trained_tokenizer()
  save_tokenizer(trained_tokenizer(300), folder)
  save_tokenizer(first, folder)
  again = saved_tokenizer(folder)
  assert again.get_vocab() == first.get_vocab()
  assert again.eos_token_id == first.eos_token_id
  assert again.encode("a<|endoftext|>b") == first.encode("a<|endoftext|>b")
  if not remote:
    assert load_tokenizer(folder).get_vocab() == first.get_vocab()


fragments = st.sampled_from(
  [END_OF_TEXT, "<|", "|>", "endoftext", " ", "<", "é", "<|endoftext", "\n"]
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=12).map("".join))
@example(END_OF_TEXT)
@example(f"a{END_OF_TEXT * 2} b")
def test_no_text_contains_the_end_of_text(trained, text):
  text = text.encode("utf-8", "ignore").decode()
  encoder = DocumentEncoder(trained)
  ids = encoder.encode([text])[0]
  assert encoder.end_of_text not in ids
  assert trained.decode(ids) == text


def test_encode_and_encode_later_agree(trained):
  encoder = DocumentEncoder(trained)
  # Texts that are long on average are encoded one by one, short ones together.
  for texts in ([], [""], ["a", "", "b c"], [TEXT * 200, "", "a", TEXT]):
    now, later = encoder.encode(texts), encoder.encode_later(texts).result()
    assert [ids.tolist() for ids in later] == [ids.tolist() for ids in now]
    assert all(ids.dtype == np.int32 for ids in later)
  encoder.close()


@settings(max_examples=30)
@given(
  text=st.text() | st.lists(st.sampled_from(["the ", "fox", " é", "☂", "\n", "  "])).map("".join)
)
def test_offsets_are_of_the_same_ids(trained, text):
  encoder = DocumentEncoder(trained)
  ((ids, offsets_Nx2),) = encoder.encode_with_offsets([text])
  np.testing.assert_array_equal(ids, encoder.encode([text])[0])
  covered = {place for start, end in offsets_Nx2 for place in range(start, end)}
  assert covered == set(range(len(text)))
  assert (np.diff(offsets_Nx2, axis=0) >= 0).all()


def test_offsets_in_a_long_text_are_those_of_the_text(trained):
  text = "the quick brown fox. " * 4000
  encoder = DocumentEncoder(trained)
  ((ids, offsets_Nx2),) = encoder.encode_with_offsets([text])
  assert len(list(encoder._cut(text))) > 2
  np.testing.assert_array_equal(ids, encoder.encode([text])[0])
  spelled = [text[start:end] for start, end in offsets_Nx2]
  assert "".join(spelled) == text


def test_tokenizer_that_has_no_ids_for_some_texts():
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, END_OF_TEXT: 1}))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)
  with pytest.raises(DataError, match=r"cannot encode every text: .*\[UNK\]"):
    DocumentEncoder(tokenizer)


def test_callers_tokenizer_is_not_changed(trained):
  trained.backend_tokenizer.enable_truncation(5)
  trained.backend_tokenizer.enable_padding(length=9)
  try:
    ids = DocumentEncoder(trained).encode([TEXT, "a"])
    assert len(ids[0]) > 100
    assert len(ids[1]) == 1
    assert trained.backend_tokenizer.truncation["max_length"] == 5
    assert trained.backend_tokenizer.padding["length"] == 9
    assert not trained.backend_tokenizer.encode_special_tokens
  finally:
    trained.backend_tokenizer.no_truncation()
    trained.backend_tokenizer.no_padding()


def test_end_of_text_that_is_not_special_is_refused():
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  with pytest.raises(DataError, match="neither an end-of-sequence token"):
    end_of_text_id(tokenizer)
  tokenizer.eos_token = "end"
  with pytest.raises(DataError, match="is not a special token"):
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


def test_vocabulary_larger_than_the_models(trained):
  check_vocabulary(trained, 320)
  check_vocabulary(trained, 384)
  with pytest.raises(DataError, match=r"320 ids.* holds 319"):
    check_vocabulary(trained, 319)


def test_special_tokens_without_a_row_do_not_enlarge_the_vocabulary(trained):
  """[PAD] added without resizing the model: no document is encoded to it."""
  tokenizer = copy.deepcopy(trained)
  size = tokenizer_module.vocabulary_size(tokenizer)
  tokenizer.add_special_tokens({"pad_token": "[PAD]"})
  assert tokenizer_module.vocabulary_size(tokenizer) == size + 1
  check_vocabulary(tokenizer, size)
  assert max(DocumentEncoder(tokenizer).encode(["a [PAD] b"])[0]) < size
  tokenizer.add_tokens(["qqq"])  # texts are encoded to this one
  with pytest.raises(DataError, match=f"tokenizer has {size + 2} ids"):
    check_vocabulary(tokenizer, size)


def test_prefix_space_is_obeyed_where_autotokenizer_obeys_it(trained, tmp_path):
  """add_prefix_space of tokenizer_config.json, which tokenizer.json may contradict."""
  from transformers import AutoTokenizer

  for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
    trained.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), "add_prefix_space": True, "tokenizer_class": name}
    path.write_text(json.dumps(fields))
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert ours("the dog").input_ids == theirs("the dog").input_ids
    obeyed = ours("the dog").input_ids == trained(" the dog").input_ids
    assert obeyed == name.startswith("GPT2")


def test_tokenizer_that_does_not_exist(tmp_path, monkeypatch):
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
def saved(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  trained.save_pretrained(folder)
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
  if name == "tokenizer.json":  # the file alone too
    with pytest.raises(DataError, match=message.removeprefix("tokenizer.json: ")):
      load_tokenizer(str(folder / name))


def test_a_single_file(saved, tmp_path, trained):
  path = tmp_path / "20B_tokenizer.json"
  shutil.copy(saved / "tokenizer.json", path)
  tokenizer = load_tokenizer(str(path))
  assert tokenizer.get_vocab() == trained.get_vocab()
  assert DocumentEncoder(tokenizer).fingerprint() == DocumentEncoder(trained).fingerprint()


def test_vocabulary_and_merges_alone(tmp_path, shared_data):
  original = shared_data / "gpt2_tokenizer"
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(original / name, tmp_path / name)
  encoders = [DocumentEncoder(load_tokenizer(str(folder))) for folder in (tmp_path, original)]
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
