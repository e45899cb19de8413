import json
import logging
import pathlib
import tracemalloc

import flax.serialization
import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax import interop
from gptneo_jax.checkpoints import folder as our_folder
from gptneo_jax.checkpoints.manager import Checkpointer
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.interop import atomic_folder, hf_config, hf_export, name_map
from gptneo_jax.interop.safetensors_file import open_safetensors, write_safetensors
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params
from tests.helpers import hf_folders

FAMILIES = ("gpt_neo", "gpt2")


def there_and_back(tmp_path, name, **options):
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False, **options)
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  return hf_folders.load(tmp_path / "back")


def error(function, *args, **kwargs) -> str:
  """The message of the UserError that the call must raise: one line."""
  with pytest.raises(UserError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# --- the weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_stored_type_goes_there_and_back_bit_for_bit(tmp_path, family, dtype):
  weights = hf_folders.tensors(family, dtype)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(family), weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  assert our_folder.load_config(tmp_path / "ours").param_dtype == dtype
  assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_parameter_of_the_model_once(family):
  config = hf_config.from_hf(hf_folders.config(family), "config.json")
  shapes = name_map.leaf_shapes(config)
  entries = name_map.entries(config)
  places = [(path, entry.index) for entry in entries for path in entry.paths]
  assert len(places) == len(set(places))
  covered = {path: [i for p, i in places if p == path] for path in shapes}
  for path, shape in shapes.items():
    expected = list(range(shape[0])) if path.startswith("blocks/") else [None]
    assert sorted(covered[path], key=str) == sorted(expected, key=str), path
  found = {e.name: name_map.hf_shape(e, shapes, config.vocab_size) for e in entries}
  assert found == hf_folders.shapes(family)


def test_what_is_written_is_an_ordinary_checkpoint(tmp_path):
  weights = hf_folders.tensors()
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  config = our_folder.load_config(tmp_path / "ours")
  params = restore_params(str(tmp_path / "ours"), abstract_params(heads.build(config)))
  q = weights["transformer.h.2.attn.attention.q_proj.weight"]  # layer 2: second of the global ones
  expected = q.T.reshape(hf_folders.D, hf_folders.H, -1)
  np.testing.assert_array_equal(params["blocks"]["layer_0"]["attn"]["q"]["kernel"][1], expected)
  writer = Checkpointer(str(tmp_path / "ours"))  # a run goes on in the folder
  writer.save(5, params=params, optimizer={"count": np.zeros(1)}, data_state={})
  writer.close()
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "later", step=5, tokenizer=False)
  hf_folders.assert_same(hf_folders.load(tmp_path / "later"), weights)


def test_a_run_with_a_padded_vocabulary_leaves_without_the_padding(tmp_path):
  config = hf_config.from_hf(hf_folders.config(), "config.json").replace(vocab_multiple=8)
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(heads.build(config)))
  our_folder.save_config(tmp_path / "run", config)
  writer = Checkpointer(str(tmp_path / "run"))
  for step in (1, 2):
    params = jax.tree.map(lambda x: x * step, ones)  # noqa: B023
    writer.save(step, params=params, optimizer={"count": np.zeros(1)}, data_state={})
  writer.close()
  for step, value in ((1, 1.0), (None, 2.0)):
    interop.orbax_to_hf(tmp_path / "run", tmp_path / f"{step}", step=step, tokenizer=False)
    found = hf_folders.load(tmp_path / f"{step}")
    assert {name: array.shape for name, array in found.items()} == hf_folders.shapes("gpt_neo")
    assert all((array == value).all() for array in found.values())


def test_several_files_come_in_and_go_out(tmp_path, monkeypatch):
  weights = hf_folders.tensors()
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  hf_folders.split(tmp_path / "hf", weights)
  monkeypatch.setattr(hf_export, "MAX_SHARD_BYTES", 20_000)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in weights.values())
  files = sorted((tmp_path / "back").glob("*.safetensors"))
  assert len(files) > 2
  assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
  for file in files:
    with safetensors.safe_open(file, framework="np") as opened:
      assert opened.metadata() == {"format": "pt"}
      assert all(index["weight_map"][name] == file.name for name in opened.keys())
    assert sum(array.nbytes for array in safetensors.numpy.load_file(file).values()) <= 20_000


def test_a_decoder_saved_alone_and_old_masks(tmp_path):
  weights = hf_folders.tensors()
  stored = {name.removeprefix("transformer."): array for name, array in weights.items()}
  stored["h.0.attn.attention.bias"] = np.ones((1, 1, 32, 32), np.uint8)
  stored["h.2.attn.attention.bias"] = np.ones((1, 1, 32, 32), np.bool_)
  stored["h.0.attn.attention.masked_bias"] = np.full((), -1e9, np.float32)
  fields = hf_folders.config(architectures=["GPTNeoModel"])
  name = hf_folders.save(tmp_path / "hf", fields, stored)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)


def test_gpt2s_old_masks(tmp_path):
  weights = hf_folders.tensors("gpt2")
  masks = {"transformer.h.1.attn.bias": np.ones((1, 1, 32, 32), np.float32)}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config("gpt2"), weights | masks)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)


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


WRAPPED = {
  "module": lambda name: f"module.{name}",
  "several": lambda name: f"module._orig_mod.model.{name}",
  "within": lambda name: name.replace(".h.1.", ".h.1._orig_mod.").replace(".mlp.", ".module.mlp."),
  "renamed": lambda name: name.replace("transformer.", "model."),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_what_wrappers_put_into_names_is_taken_off_and_said(tmp_path, wrapped, caplog):
  weights = hf_folders.tensors()
  stored = {wrapped(name): x for name, x in weights.items()}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), stored)
  opened = interop.open_hf(name)
  np.testing.assert_array_equal(
    opened.params["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"].load()[0],
    weights["transformer.h.1.mlp.c_fc.weight"].T,
  )
  np.testing.assert_array_equal(opened.params["wte"].load(), weights["transformer.wte.weight"])
  assert "parts that a wrapper added to the names are removed" in caplog.text


def test_tensors_beside_the_model(tmp_path):
  """Named with the flag that leaves them out, alone and in front of a prefix."""
  weights = hf_folders.tensors()
  beside = {
    "v_head.summary.weight": np.ones((1, 24), np.float32),
    "v_head.summary.bias": np.ones(1, np.float32),
    "lm_head.bias": np.ones(61, np.float32),
  }
  fields = hf_folders.config(architectures=["GPTNeoForCausalLMWithValueHead"])
  name = hf_folders.save(tmp_path / "hf", fields, weights | beside)
  message = error(interop.open_hf, name, ignore=["v_head.*"])
  assert "holds lm_head.bias, which a gpt_neo with 4 layers does not have" in message
  assert "--ignore 'lm_head.bias'` leaves it out" in message
  message = error(interop.open_hf, name, ignore=["lm_head.bias"])
  assert "--ignore 'v_head.*'` leaves it out" in message
  message = error(interop.open_hf, name, ignore=["v_haed.*"])
  assert "--ignore 'v_haed.*' matches none of the tensors, such as lm_head.bias" in message
  ignore = ["lm_head.bias", "v_head.*"]
  hf_folders.assert_same(there_and_back(tmp_path, name, ignore=ignore), weights)
  back = json.loads((tmp_path / "back/config.json").read_text())
  assert back["architectures"] == ["GPTNeoForCausalLM"]
  wrapped = {f"pretrained_model.{name}": x for name, x in weights.items()} | beside
  name = hf_folders.save(tmp_path / "wrapped", fields, wrapped)
  message = error(interop.open_hf, name, ignore=["v_head.*"])
  assert "begin with 'pretrained_model.', but lm_head.bias does not" in message
  averages = {f"ema.{name}": x for name, x in weights.items()}
  twice = hf_folders.save(tmp_path / "twice", fields, averages | weights)
  assert "--ignore 'ema.*'` leaves it out" in error(interop.open_hf, twice)
  assert interop.open_hf(twice, ignore=["ema.*"]).config.num_layers == 4
  found = interop.open_hf(name, ignore=ignore).params["ln_f"]["bias"].load()
  np.testing.assert_array_equal(found, weights["transformer.ln_f.bias"])


def test_float64(tmp_path):
  weights = {name: x.astype(np.float64) for name, x in hf_folders.tensors().items()}
  weights["transformer.ln_f.bias"] *= 1 + 1e-12
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  assert "is stored as float64: choose a type with --dtype" in error(interop.open_hf, name)
  expected = {name: x.astype(np.float32) for name, x in weights.items()}
  hf_folders.assert_same(there_and_back(tmp_path, name, dtype="float32"), expected)
  weights["transformer.ln_f.bias"][2] = 1e300
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  message = error(interop.hf_to_orbax, name, tmp_path / "no", dtype="float32", tokenizer=False)
  assert "transformer.ln_f.bias has values beyond the range of float32" in message


def test_numbers_that_are_not_finite_are_said_once_each_way_and_kept(tmp_path, caplog):
  weights = hf_folders.tensors("gpt2")
  weights["transformer.h.1.attn.c_attn.weight"][3, 4:6] = np.nan, -np.inf
  name = hf_folders.save(tmp_path / "hf", hf_folders.config("gpt2"), weights)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  said = "transformer.h.1.attn.c_attn.weight holds 2 numbers that are not finite"
  assert [text for text in caplog.messages if "finite" in text] == [said] * 2


@pytest.mark.parametrize(
  "file", ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, file):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
  (tmp_path / "hf" / file).write_text(pointer)
  message = error(interop.open_hf, name)
  assert f"{file} is a Git LFS pointer, not the file itself: fetch that" in message


def test_an_adapter_is_no_model(tmp_path):
  (tmp_path / "adapter_config.json").write_text("{}")
  (tmp_path / "adapter_model.bin").write_bytes(b"")
  assert "holds an adapter, not a model: pass it as --adapter" in error(
    interop.open_hf, str(tmp_path)
  )
  name = hf_folders.save(tmp_path, hf_folders.config())
  assert "holds an adapter, not a model: pass it as --adapter" in error(interop.open_hf, name)


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
  assert "64 rows, 3 of them padding" in caplog.text


def test_a_tokenizer_that_uses_the_padding_is_a_contradiction(tmp_path):
  weights = hf_folders.tensors()
  table = weights["transformer.wte.weight"]
  weights["transformer.wte.weight"] = np.concatenate([table, table[:3]])
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  hf_folders.word_tokenizer(tmp_path / "hf", 64)
  message = error(interop.open_hf, name)
  assert "vocab_size is 61, but the embedding has 64 rows and the tokenizer 64 ids" in message


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_dtype_on_the_way_in_and_out(tmp_path, stored, wanted):
  weights = hf_folders.tensors(dtype=stored)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  numpy_type = ml_dtypes.bfloat16 if wanted == "bfloat16" else wanted
  expected = {key: array.astype(numpy_type) for key, array in weights.items()}
  hf_folders.assert_same(there_and_back(tmp_path, name, dtype=wanted), expected)
  interop.hf_to_orbax(name, tmp_path / "as_stored", tokenizer=False)
  interop.orbax_to_hf(tmp_path / "as_stored", tmp_path / "cast", dtype=wanted, tokenizer=False)
  hf_folders.assert_same(hf_folders.load(tmp_path / "cast"), expected)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
  weights = hf_folders.tensors()
  weights["transformer.ln_f.bias"][3] = 1e6
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  message = error(interop.hf_to_orbax, name, tmp_path / "ours", dtype="float16", tokenizer=False)
  assert "transformer.ln_f.bias has values beyond the range of float16" in message
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("family", FAMILIES)
def test_msgpack_of_the_old_flax_classes(tmp_path, family):
  weights = hf_folders.tensors(family, "bfloat16" if family == "gpt2" else "float32")
  tree: dict = {}
  for name, array in weights.items():
    *parents, leaf = name.split(".")
    if leaf == "weight":
      norm, table = "ln_" in name, "wte" in name or "wpe" in name
      leaf = "scale" if norm else "embedding" if table else "kernel"
      array = array.T if leaf == "kernel" else array
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.ascontiguousarray(array)
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(family))
  data = flax.serialization.msgpack_serialize(tree)
  path = pathlib.Path(name, "flax_model.msgpack")
  path.write_bytes(data)
  hf_folders.assert_same(there_and_back(tmp_path, name), weights)
  path.write_bytes(data[: len(data) // 2])
  assert "flax_model.msgpack is damaged" in error(interop.open_hf, name)
  path.write_bytes(b"\x80")
  assert "no tensors" in error(interop.open_hf, name)


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


def test_the_writer_of_safetensors_is_the_librarys_equal(tmp_path):
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.ones((), np.float16),
    "d": np.full((5, 1), 2.5, ml_dtypes.bfloat16),
  }
  specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
  write_safetensors(tmp_path / "x.safetensors", specs, iter(arrays.values()))
  hf_folders.assert_same(safetensors.numpy.load_file(tmp_path / "x.safetensors"), arrays)
  read = {n: t.read() for n, t in open_safetensors(tmp_path / "x.safetensors").items()}
  hf_folders.assert_same(read, arrays)


# --- config.json --------------------------------------------------------------------------------


def layers_of(**fields) -> tuple[str, ...]:
  return hf_config.from_hf(hf_folders.config(**fields), "config.json").attention_layers


def test_attention_types_in_every_shape():
  g, l = "global", "local"  # noqa: E741
  assert layers_of(attention_types=[[[g, l], 2]]) == (g, l, g, l)
  assert layers_of(attention_types=[[[g], 1], [[l], 3]]) == (g, l, l, l)
  assert layers_of(attention_types=[[[g, l], 1], [[g, l], 1]]) == (g, l, g, l)
  assert layers_of(attention_types=[[[g], 4]]) == (g,) * 4
  assert layers_of(attention_types=None, attention_layers=[l, l, g, g]) == (l, l, g, g)
  assert layers_of(attention_types=None, num_layers=24) == (g, l) * 12


@given(st.lists(st.sampled_from(["global", "local"]), min_size=1, max_size=12))
def test_any_list_of_layers_survives(layers):
  fields = hf_folders.config(
    num_layers=len(layers),
    attention_types=[[[kind], 1] for kind in layers],
    attention_layers=layers,
  )
  config = hf_config.from_hf(fields, "config.json")
  assert list(config.attention_layers) == layers
  assert config.num_layers % config.period == 0
  back = hf_config.to_hf(config, {}, "5")
  assert hf_config.from_hf(back, "config.json") == config
  assert hf_config.to_hf(config, fields, "5")["attention_types"] == fields["attention_types"]


def test_what_a_config_leaves_out_is_hugging_faces_default():
  # The hub's config of the 125M model, but for its token ids and summary settings.
  config = hf_config.from_hf(
    {
      "activation_function": "gelu_new",
      "architectures": ["GPTNeoForCausalLM"],
      "attention_dropout": 0,
      "attention_types": [[["global", "local"], 6]],
      "embed_dropout": 0,
      "gradient_checkpointing": False,
      "hidden_size": 768,
      "initializer_range": 0.02,
      "intermediate_size": None,
      "layer_norm_epsilon": 1e-05,
      "max_position_embeddings": 2048,
      "model_type": "gpt_neo",
      "num_heads": 12,
      "num_layers": 12,
      "resid_dropout": 0,
      "vocab_size": 50257,
      "window_size": 256,
    },
    "config.json",
  )
  assert config.num_params() == 125_198_592
  assert config.tie_word_embeddings
  assert hf_config.from_hf({"model_type": "gpt_neo"}, "x").num_params() == 1_315_575_808
  gpt2 = hf_config.from_hf({"model_type": "gpt2"}, "x")
  assert gpt2.num_params() == 124_439_808
  assert (gpt2.resid_dropout, gpt2.max_position_embeddings) == (0.1, 1024)


def test_aliases():
  fields = hf_folders.config()
  del fields["num_layers"], fields["num_heads"]
  fields |= {"num_hidden_layers": 4, "num_attention_heads": 4}
  assert hf_config.from_hf(fields, "x") == hf_config.from_hf(hf_folders.config(), "x")
  message = error(hf_config.from_hf, hf_folders.config(num_hidden_layers=6), "config.json")
  assert message == "config.json: num_layers=4 and num_hidden_layers=6 disagree"


def test_what_we_do_not_model_survives(tmp_path):
  extra = {
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "tokenizer_class": "GPT2Tokenizer",
    "id2label": {"0": "a", "1": "b"},
    "gradient_checkpointing": False,
  }
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(**extra), hf_folders.tensors())
  (tmp_path / "hf/generation_config.json").write_text('{"temperature": 0.9}')
  there_and_back(tmp_path, name)
  back = json.loads((tmp_path / "back/config.json").read_text())
  assert extra.items() <= back.items()
  assert (tmp_path / "back/generation_config.json").read_text() == '{"temperature": 0.9}'


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"model_type": "llama"}, "model_type is 'llama'; supported are gpt2 and gpt_neo"),
    ({"model_type": None}, "model_type is None"),
    ({"activation_function": "prelu"}, "activation_function is 'prelu'; it must be one of gelu_ne"),
    ({"activation_function": 3}, "activation_function is 3, which is not of type str"),
    ({"add_cross_attention": True}, "add_cross_attention is True; only False is supported"),
    ({"architectures": ["GPTNeoForSomething"]}, "architectures names GPTNeoForSomething"),
    ({"num_layers": 3}, "attention_types has 4 layers, and num_layers is 3"),
    ({"attention_types": "global"}, "attention_types is 'global'"),
    ({"attention_types": [[["sparse"], 4]]}, "'sparse'"),
    ({"attention_layers": ["global"] * 4}, "attention_layers is not what attention_types"),
    ({"num_heads": 5}, "hidden_size 24 is not divisible by model.num_heads 5"),
    ({"hidden_size": "24"}, "hidden_size is '24'"),
    ({"hidden_size": 24.5}, "hidden_size is 24.5, which is not an integer"),
    ({"quantization_config": {"bits": 8}}, "quantization_config is {'bits': 8}"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
  ],
)
def test_configs_that_are_refused(fields, words):
  message = error(hf_config.from_hf, hf_folders.config(**fields), "some/config.json")
  assert message.startswith("some/config.json: ")
  assert words in message


@pytest.mark.parametrize(
  "theirs, ours", [("gelu_fast", "gelu_new"), ("gelu_python", "gelu"), ("relu", "relu")]
)
def test_names_of_one_function_are_one_function_and_come_back(theirs, ours):
  for family in FAMILIES:
    fields = hf_folders.config(family, activation_function=theirs)
    config = hf_config.from_hf(fields, "config.json")
    assert config.activation_function == ours
    assert hf_config.to_hf(config, fields, "5")["activation_function"] == theirs
    assert hf_config.to_hf(config, {}, "5")["activation_function"] == ours
    changed = config.replace(activation_function="silu")  # trained on with another
    assert hf_config.to_hf(changed, fields, "5")["activation_function"] == "silu"


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
def test_scales_of_gpt2s_attention(weights, by_layer):
  settings = {
    "scale_attn_weights": weights,
    "scale_attn_by_inverse_layer_idx": by_layer,
    "reorder_and_upcast_attn": by_layer,  # scores are float32 here in any case
  }
  config = hf_config.from_hf(hf_folders.config("gpt2", **settings), "config.json")
  assert config.attention_scale == pytest.approx(6**-0.5 if weights else 1.0)
  assert config.scale_attn_by_inverse_layer_idx == by_layer
  assert settings.items() <= hf_config.to_hf(config, settings, "5").items()


# --- bad input ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_safetensors(tmp_path, keep):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  path = pathlib.Path(name, "model.safetensors")
  data = path.read_bytes()
  path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
  assert f"{path} is damaged" in error(interop.open_hf, name)


def test_a_part_that_is_not_there(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config())
  hf_folders.split(tmp_path / "hf", hf_folders.tensors())
  (tmp_path / "hf/model-00002-of-00003.safetensors").unlink()
  assert "names model-00002-of-00003.safetensors, which does not exist" in error(
    interop.open_hf, name
  )
  (tmp_path / "hf/model.safetensors.index.json").write_text("[]")
  assert "model.safetensors.index.json is damaged" in error(interop.open_hf, name)


@pytest.mark.parametrize(
  "files, words",
  [
    (["rust_model.ot"], "EleutherAI/gpt-neo-2.7B"),
    (["tf_model.h5"], "EleutherAI/gpt-neo-2.7B"),
    (["model.ckpt-4000.index"], "EleutherAI/gpt-neo-2.7B"),
    ([], "holds no weights: none of model.safetensors, pytorch_model.bin, flax_model.msgpack"),
  ],
)
def test_files_that_are_refused_by_name(tmp_path, files, words):
  fields = {"model_type": "gpt_neo", "num_layers": 32, "attention_types": [[["global"], 32]]}
  name = hf_folders.save(tmp_path / "hf", fields)
  for file in files:
    (tmp_path / "hf" / file).write_bytes(b"")
  message = error(interop.open_hf, name)
  assert words in message
  assert all(file[:10] in message for file in files)


def test_openais_own_files(tmp_path):
  (tmp_path / "hparams.json").write_text('{"n_layer": 24, "n_embd": 1024}')
  (tmp_path / "model.ckpt.index").write_bytes(b"")
  message = error(interop.open_hf, str(tmp_path))
  assert "OpenAI's own TensorFlow files" in message
  assert "openai-community/gpt2-medium on the Hugging Face hub" in message


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


def test_no_network_is_one_line_and_one_request(monkeypatch):
  requests = []

  def no_network(self, name, timeout):
    requests.append((name, timeout))
    raise ConnectionError("no route to host\nmore")

  def not_cached(name, local_files_only=False, **_):
    assert local_files_only
    raise FileNotFoundError

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
  message = error(interop.open_hf, "EleutherAI/gpt-neo-125m")
  assert message.startswith(
    "EleutherAI/gpt-neo-125m: no such folder, and the hub does not provide it"
  )
  assert message.endswith("no route to host")
  assert requests == [("EleutherAI/gpt-neo-125m", 10)]


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: name)
  assert interop.open_hf("some/model").folder == pathlib.Path(name)


def test_one_form_of_the_weights_is_fetched(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  files = ["pytorch_model.bin", "model.safetensors", "flax_model.msgpack", "rust_model.ot"]
  asked = []

  class Info:
    siblings = [type("File", (), {"rfilename": file}) for file in files]  # noqa: RUF012

  def download(_, local_files_only=False, allow_patterns=()):
    if local_files_only:
      raise FileNotFoundError
    asked.extend(allow_patterns)
    return name

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  interop.open_hf("some/model")
  assert "model.safetensors" in asked
  assert "tokenizer.json" in asked
  assert not {"pytorch_model.bin", "flax_model.msgpack", "rust_model.ot"} & set(asked)


def test_no_tokenizer(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  message = error(interop.hf_to_orbax, name, tmp_path / "ours")
  assert "holds no tokenizer; --tokenizer gives one, --no_tokenizer" in message
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  message = error(interop.orbax_to_hf, tmp_path / "ours", tmp_path / "back")
  assert "holds no tokenizer; --tokenizer gives one, --no_tokenizer" in message


def test_the_tokenizer_goes_along(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  hf_folders.word_tokenizer(tmp_path / "hf")
  interop.hf_to_orbax(name, tmp_path / "ours")
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back")
  for file in ("tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()


def test_a_destination_that_is_not_empty(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  (tmp_path / "full").mkdir()
  (tmp_path / "full/notes").write_text("mine")
  (tmp_path / "empty").mkdir()
  message = error(interop.hf_to_orbax, name, tmp_path / "full", tokenizer=False)
  assert "full already exists and is not empty" in message
  interop.hf_to_orbax(name, tmp_path / "empty", tokenizer=False)
  message = error(interop.orbax_to_hf, tmp_path / "empty", tmp_path / "full", tokenizer=False)
  assert "full already exists and is not empty" in message
  assert (tmp_path / "full/notes").read_text() == "mine"
  assert "not a local folder" in error(interop.hf_to_orbax, name, "gs://a/b", tokenizer=False)
  message = error(interop.orbax_to_hf, "gs://bucket/run", tmp_path / "back")
  assert message.startswith("gs://bucket/run is not a local folder: copy it to one first")


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda _: usage)
  message = error(interop.hf_to_orbax, name, tmp_path / "ours", tokenizer=False)
  assert "0.0 GB are free" in message


def test_a_checkpoint_that_is_not_there_or_damaged(tmp_path):
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  interop.hf_to_orbax(name, tmp_path / "ours", tokenizer=False)
  to_hf = lambda **options: error(  # noqa: E731
    interop.orbax_to_hf, tmp_path / "ours", tmp_path / "back", tokenizer=False, **options
  )
  assert "no checkpoint 7" in to_hf(step=7)
  for file in (tmp_path / "ours/0/params/ocdbt.process_0/d").iterdir():
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4])
  assert "damaged" in to_hf()
  assert not (tmp_path / "back").exists()
  our_folder.save_config(tmp_path / "ours", ModelConfig())
  assert "the checkpoint is of another model than config.json" in to_hf()
  assert "holds no config.json" in error(interop.orbax_to_hf, tmp_path, tmp_path / "back")
