"""Hugging Face folders become checkpoints bit for bit, or are refused with the reason."""

import json
import logging
import tracemalloc

import numpy as np
import pytest

from gptneo_jax import interop
from gptneo_jax.checkpoints import folder as our_folder
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.config import ModelConfig
from gptneo_jax.interop import hf_config, name_map
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params
from tests.helpers import hf_folders
from tests.helpers.conversion import error, there_and_back


@pytest.mark.parametrize("architecture", hf_folders.HEADS)
def test_every_head_goes_there_and_back_bit_for_bit(tmp_path, architecture):
  family = "gpt2" if architecture.startswith("GPT2") else "gpt_neo"
  labels = {"0": "no", "1": "maybe", "2": "yes"}
  fields = hf_folders.config(
    family, architectures=[architecture], id2label=labels, pad_token_id=0, problem_type=None
  )
  weights = hf_folders.tensors(family, architecture=architecture)
  name = hf_folders.save(tmp_path / "hf", fields, weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  back = json.loads((tmp_path / "back/config.json").read_text())
  assert (back["architectures"], back["id2label"]) == ([architecture], labels)
  assert back["pad_token_id"] == 0
  config = our_folder.load_config(tmp_path / "ours")
  if "Classification" in architecture:
    assert config.id2label == ("no", "maybe", "yes")


def test_what_is_written_is_an_ordinary_checkpoint(tmp_path):
  weights = hf_folders.tensors()
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  config = our_folder.load_config(tmp_path / "ours")
  params = restore_params(str(tmp_path / "ours"), abstract_params(heads.build(config)))
  q = weights["transformer.h.2.attn.attention.q_proj.weight"]  # layer 2: second of the global ones
  expected = q.T.reshape(hf_folders.D, hf_folders.H, -1)
  np.testing.assert_array_equal(params["blocks"]["layer_0"]["attn"]["q"]["kernel"][1], expected)
  writer = Checkpointer(str(tmp_path / "ours"))  # a run continues in the folder
  writer.save(5, params=params, optimizer={"count": np.zeros(1)}, data_state={})
  writer.close()
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "later", step=5, tokenizer=False)
  hf_folders.assert_same(hf_folders.load(tmp_path / "later"), weights)


def test_a_copy_of_the_embedding_as_head_is_dropped(tmp_path):
  weights = hf_folders.tensors()
  head = {"lm_head.weight": weights["transformer.wte.weight"].copy()}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights | head)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert our_folder.load_config(tmp_path / "ours").tie_word_embeddings


@pytest.mark.parametrize("says", [True, False])
def test_a_head_of_its_own_is_kept_whatever_the_config_says(tmp_path, says, caplog):
  weights = hf_folders.tensors()
  weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
  fields = hf_folders.config(tie_word_embeddings=says)
  name = hf_folders.save(tmp_path / "hf", fields, weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert not json.loads((tmp_path / "back/config.json").read_text())["tie_word_embeddings"]
  assert ("lm_head.weight is not the embedding" in caplog.text) == says


def test_the_head_alone_of_a_tied_pair(tmp_path):
  """What safetensors' save_model keeps of two names for one tensor."""
  weights = hf_folders.tensors()
  stored = dict(weights)
  stored["lm_head.weight"] = stored.pop("transformer.wte.weight")
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), stored)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert our_folder.load_config(tmp_path / "ours").tie_word_embeddings
  fields = hf_folders.config(tie_word_embeddings=False)
  untied = hf_folders.save(tmp_path / "untied", fields, stored)
  assert "lacks transformer.wte.weight" in error(interop.open_hf, untied)


@pytest.mark.parametrize(
  "file, content",
  [
    ("added_tokens.json", {"<a>": 61, "<b>": 62}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"62": {"content": "<b>"}}}),
    ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 62}]}),
    ("tokenizer.json", {"model": {"vocab": [["a", 0.0]] * 63}}),
  ],
)
def test_rows_of_added_tokens_are_no_padding(tmp_path, file, content):
  weights = hf_folders.tensors()
  table = weights["transformer.wte.weight"]
  weights["transformer.wte.weight"] = np.concatenate([table, table[:3]])
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  (tmp_path / "hf" / file).write_text(json.dumps(content))
  message = error(interop.open_hf, name)
  assert "the embedding has 64 rows and the tokenizer 63 ids: set vocab_size to 64" in message
  hf_folders.save(tmp_path / "hf", hf_folders.config(vocab_size=64), weights)
  np.testing.assert_array_equal(
    interop.open_hf(name).params["wte"].load(), weights["transformer.wte.weight"]
  )


def test_padding_of_the_vocabulary_is_dropped_and_said(tmp_path, caplog):
  weights = hf_folders.tensors()
  table = weights["transformer.wte.weight"]
  padded = {"transformer.wte.weight": np.concatenate([table, np.ones((3, hf_folders.D), "f4")])}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights | padded)
  with caplog.at_level(logging.WARNING):
    hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert "64 rows, of which the last 3 are padding" in caplog.text


def test_a_tokenizer_that_uses_the_padding_is_a_contradiction(tmp_path):
  weights = hf_folders.tensors()
  table = weights["transformer.wte.weight"]
  weights["transformer.wte.weight"] = np.concatenate([table, table[:3]])
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  hf_folders.word_tokenizer(tmp_path / "hf", 64)
  message = error(interop.open_hf, name)
  assert "vocab_size is 61, but the embedding has 64 rows and the tokenizer 64 ids" in message


def test_memory_is_that_of_a_few_tensors(tmp_path):
  width, layers = 256, 12
  fields = hf_folders.config(
    hidden_size=width, num_layers=layers, attention_types=[[["global", "local"], layers // 2]],
    intermediate_size=None,
  )  # fmt: skip
  config = hf_config.from_hf(fields, "config.json")
  shapes = name_map.leaf_shapes(config)
  weights = {
    entry.name: np.zeros(name_map.hf_shape(entry, shapes, config.vocab_size), np.float32)
    for entry in name_map.entries(config)
  }
  largest = max(array.nbytes for array in weights.values())
  assert sum(array.nbytes for array in weights.values()) > 30 * largest
  name = hf_folders.save(tmp_path / "hf", fields, weights)
  del weights
  tracemalloc.start()
  there_and_back_without_reading = (
    lambda: interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False),
    lambda: interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False),
  )
  for convert in there_and_back_without_reading:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    convert()
    assert tracemalloc.get_traced_memory()[1] - before < 8 * largest
  tracemalloc.stop()


def bad(tmp_path, **changes) -> str:
  """The message for weights with tensors changed, or taken out where the change is None."""
  weights = hf_folders.tensors()
  for name, array in changes.items():
    weights.pop(name, None)
    if array is not None:
      weights[name] = array
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  message = error(interop.hf_to_orbax, name, tmp_path / "ours", tokenizer=False)
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]  # nothing half-written
  return message


def test_a_missing_tensor(tmp_path):
  message = bad(tmp_path, **{"transformer.h.2.ln_1.bias": None})
  assert "model.safetensors lacks transformer.h.2.ln_1.bias" in message


def test_an_extra_tensor(tmp_path):
  message = bad(tmp_path, **{"transformer.h.4.ln_1.bias": np.ones(24, np.float32)})
  assert "holds transformer.h.4.ln_1.bias, which a gpt_neo with 4 layers does not have" in message


def test_a_wrong_shape(tmp_path):
  message = bad(tmp_path, **{"transformer.wpe.weight": np.ones((31, 24), np.float32)})
  assert "transformer.wpe.weight has shape (31, 24), and config.json makes it (32, 24)" in message


def test_several_float_types(tmp_path):
  message = bad(tmp_path, **{"transformer.ln_f.bias": np.ones(24, np.float16)})
  assert "transformer.ln_f.bias float16" in message
  assert "--dtype" in message


def test_a_type_that_is_no_weight(tmp_path):
  message = bad(tmp_path, **{"transformer.ln_f.bias": np.ones(24, np.int64)})
  assert "transformer.ln_f.bias is stored as int64" in message


def test_a_head_that_is_not_there(tmp_path):
  fields = hf_folders.config(architectures=["GPTNeoForQuestionAnswering"])
  name = hf_folders.save(tmp_path / "hf", fields, hf_folders.tensors())
  assert "lacks qa_outputs.weight" in error(interop.open_hf, name)


def test_folders_that_are_none(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "empty").mkdir()
  (tmp_path / "torn").mkdir()
  (tmp_path / "torn/config.json").write_text("{")
  assert "no such folder" in error(interop.open_hf, str(tmp_path / "nowhere"))
  assert "is a file" in error(interop.open_hf, str(tmp_path / "file"))
  assert "holds no config.json" in error(interop.open_hf, str(tmp_path / "empty"))
  assert "config.json cannot be read" in error(interop.open_hf, str(tmp_path / "torn"))
  our_folder.save_config(tmp_path / "ours", ModelConfig())
  assert "already a gptneo_jax checkpoint folder" in error(interop.open_hf, str(tmp_path / "ours"))
