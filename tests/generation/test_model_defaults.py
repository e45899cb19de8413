"""What a model's own files say of generation, beyond what transformers is compared with."""

import json

import jax
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data, engine, generate, model_io
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError

TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=2,
  window_size=6,
)  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 20


@pytest.fixture(scope="module")
def parts():
  mesh, rng = model_io.first_device(), np.random.default_rng(3)
  params = jax.tree.map(
    lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(TINY, mesh),
  )
  tokenizer = data.load_tokenizer("train", documents=[Document(TEXT, "", "")], vocab_size=280)
  return params, mesh, tokenizer


@pytest.fixture
def make(parts):
  """A model with these files beside it."""
  params, mesh, tokenizer = parts

  def make(generation=None, config=None):
    files = {"generation_config.json": generation, "hf_config.json": config}
    kept = {name: json.dumps(fields) for name, fields in files.items() if fields is not None}
    lm = engine.LanguageModel(model_io.LoadedModel(TINY, params, None, kept), mesh)
    lm.tokenizer = tokenizer
    return lm

  return make


def new(lm, **options):
  return lm.generate([[5, 6, 7]], **options).sequences[0, 3:].tolist()


def test_what_is_taken_is_said_once(make, caplog):
  lm = make({"eos_token_id": [0, 9], "repetition_penalty": 1.5, "top_p": 0.5, "max_time": 2.0})
  new(lm), new(lm)
  (line,) = caplog.messages
  assert line == (
    "generate: the model's generation_config.json sets eos_token_id [0, 9], repetition_penalty 1.5,"
    " max_time 2.0 (not supported, left out); what you give wins, and lm.generation_config = {}"
    " (--ignore_generation_config) leaves it out"
  )
  caplog.clear()
  new(make({"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0, "transformers_version": "5"}))
  assert not caplog.messages  # the tokenizer's end of text, and nothing else


def test_where_ends_come_from(make, parts):
  """generation_config.json, then config.json, then the tokenizer."""
  free = new(make(), eos_token_id=-1)
  third, fourth = free[2], free[3]
  until = lambda i: free[: free.index(i) + 1]
  assert free.index(third) != free.index(fourth)
  assert new(make({"eos_token_id": third}, {"eos_token_id": fourth})) == until(third)
  assert new(make({}, {"eos_token_id": fourth})) == until(fourth)
  lm = make({}, {})
  token = lm.tokenizer.convert_ids_to_tokens(int(third))
  lm.tokenizer = type(lm.tokenizer)(
    tokenizer_object=parts[2].backend_tokenizer, eos_token=token, bos_token=token
  )
  assert new(lm) == until(third)


def test_an_end_that_the_tokenizer_has_not(make, parts):
  """Without one, or with one that the model has no row for, a text continues to its length."""
  lm = make(None, {"eos_token_id": new(make(), eos_token_id=-1)[1]})
  lm.tokenizer = type(parts[2])(tokenizer_object=parts[2].backend_tokenizer)
  assert len(new(lm)) <= 2
  lm = make()
  lm.tokenizer = type(parts[2])(tokenizer_object=parts[2].backend_tokenizer)
  lm.tokenizer.add_special_tokens({"eos_token": "<end>"})
  assert lm.tokenizer.eos_token_id == 280
  assert new(lm) == new(make(), eos_token_id=-1)
  assert len(lm.generate("the dog").texts) == 1
  with pytest.raises(UserError, match="eos_token_id holds 280"):  # what the caller gives is checked
    new(lm, eos_token_id=280)


def test_a_length_of_the_caller_s_counts(make):
  """transformers lets the file's max_new_tokens win over the caller's max_length."""
  assert len(new(make({"max_new_tokens": 2}), max_length=9, eos_token_id=-1)) == 6
  assert len(new(make({"max_length": 30, "min_length": 20}), max_new_tokens=2)) == 2


def test_mistakes_name_where_they_come_from(make):
  with pytest.raises(UserError, match=r"max_length is 3.* \(max_length: of the model's own"):
    new(make({"max_length": 3}))
  with pytest.raises(UserError, match=r"temperature is 0.*temperature: of the model's own"):
    new(make({"do_sample": True, "temperature": 0.0}))
  with pytest.raises(UserError, match=r"stream is of one.* \(num_beams: of the model's own"):
    make({"num_beams": 2}).stream("the dog")
  lm = make()
  lm._loaded.kept_files["generation_config.json"] = "{"
  with pytest.raises(UserError, match=r"generation_config.json cannot be read: .*lm\.generation_"):
    new(lm)


def test_they_are_kept_and_a_flag_leaves_them_out(make, tmp_path, capsys):
  lm = make({"max_new_tokens": 3, "eos_token_id": 279})
  lm.save(str(tmp_path / "saved"))
  again = gptneo_jax.load(str(tmp_path / "saved"))
  assert again.generation_config == lm.generation_config
  argv = ["--checkpoint", str(tmp_path / "saved"), "--prompt", "the dog", "--output", "jsonl"]
  assert generate.main(argv) == 0
  assert generate.main([*argv, "--ignore_generation_config"]) == 0
  obeyed, ignored = map(json.loads, capsys.readouterr().out.splitlines())
  assert len(obeyed["tokens"]) == 3 < len(ignored["tokens"])
