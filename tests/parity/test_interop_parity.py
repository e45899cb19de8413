"""Conversion against PyTorch's own models: what it saves, we open; what we write, it opens."""

import json
import pickle
import sys
import warnings

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import safetensors.torch  # noqa: E402
from transformers.utils import logging as hf_logging  # noqa: E402

from gptneo_jax import data, engine, interop  # noqa: E402
from gptneo_jax.checkpoints.folder import load_config  # noqa: E402
from gptneo_jax.checkpoints.lazy import LazyArray, write_params  # noqa: E402
from gptneo_jax.data import DataConfig  # noqa: E402
from gptneo_jax.errors import UserError  # noqa: E402
from gptneo_jax.evals import perplexity  # noqa: E402
from gptneo_jax.interop import name_map  # noqa: E402
from gptneo_jax.model import heads  # noqa: E402
from gptneo_jax.model.losses import token_losses  # noqa: E402
from tests.helpers import hf_models  # noqa: E402

pytestmark = pytest.mark.parity

CLASSES = {
  "gpt_neo": (
    transformers.GPTNeoForCausalLM,
    transformers.GPTNeoForSequenceClassification,
    transformers.GPTNeoForTokenClassification,
    transformers.GPTNeoForQuestionAnswering,
  ),
  "gpt2": (
    transformers.GPT2LMHeadModel,
    transformers.GPT2ForSequenceClassification,
    transformers.GPT2ForTokenClassification,
    transformers.GPT2ForQuestionAnswering,
    transformers.GPT2DoubleHeadsModel,
  ),
}
ALL = [(family, cls) for family, classes in CLASSES.items() for cls in classes]


def make(family, cls, **options):
  """A random model with the head, in which no tensor is trivial."""
  base = getattr(hf_models, family)(**options)
  config = base.config
  config.pad_token_id = 0
  if cls is not transformers.GPT2DoubleHeadsModel:
    config.num_labels = 3 if "Classification" in cls.__name__ else 2
  model = cls(config)
  generator = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(0.1 * torch.randn(p.shape, generator=generator) + (1.0 if ".ln_" in name else 0.0))
  return model.eval()


def opened_by_transformers(cls, folder):
  """Loads a folder and asserts that transformers has nothing to say about it."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    said = []
    handler = type("Handler", (hf_logging.logging.Handler,), {"emit": lambda _, r: said.append(r)})
    listener = handler()
    hf_logging.add_handler(listener)
    try:
      model, info = cls.from_pretrained(folder, output_loading_info=True)
    finally:
      hf_logging.remove_handler(listener)
  assert not any(info.values()), info
  assert not [r.getMessage() for r in said if r.levelno >= hf_logging.WARNING]
  return model


@pytest.mark.parametrize("family, cls", ALL, ids=lambda x: getattr(x, "__name__", x))
def test_each_class_comes_in_computes_the_same_and_goes_back(tmp_path, family, cls):
  model = make(family, cls)
  model.save_pretrained(tmp_path / "hf")
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  report = interop.verify(str(tmp_path / "hf"), tmp_path / "ours")
  assert report["max_abs_difference"] < 2e-5
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  again = opened_by_transformers(cls, tmp_path / "back")
  expected, actual = model.state_dict(), again.state_dict()
  assert expected.keys() == actual.keys()
  assert all(torch.equal(expected[name], actual[name]) for name in expected)
  before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("hf", "back"))
  assert after == before


def test_the_verifier_takes_the_checkpoint_that_is_meant(tmp_path):
  """Step 7 is the model, its table padded; step 9, the newest, is another."""
  make, settings = next(iter(hf_models.SETTINGS.values()))
  make(std=0.3, **settings).save_pretrained(tmp_path / "hf")
  hf, ours = str(tmp_path / "hf"), tmp_path / "ours"
  interop.hf_to_orbax(hf, ours, tokenizer=False)
  params = jax.tree.map(np.asarray, engine.load(hf).params)
  params["wte"] = np.pad(params["wte"], ((0, 5), (0, 0)), constant_values=1e9)

  def save(step, scale):
    write_params(
      ours,
      jax.tree.map(
        lambda x: LazyArray(x.shape, x.dtype, False, lambda _: np.asarray(x * scale, x.dtype)),
        params,
      ),
      step,
    )

  save(7, 1.0)
  save(9, 0.5)
  for destination, step in ((ours, "7"), (ours / "7", None)):
    report = interop.verify(hf, destination, step=step)
    assert report["max_abs_difference"] < 1e-4 and report["step"] == 7
    assert report["file"] == str(ours / interop.REPORT)
  assert interop.verify(hf, ours)["max_abs_difference"] > 0.1


@pytest.mark.parametrize("name", hf_models.SETTINGS)
def test_each_setting_comes_in_computes_the_same_and_goes_back(tmp_path, name):
  """Logits past the window, greedy tokens with the cache, and every bit on the way back."""
  make, settings = hf_models.SETTINGS[name]
  model = make(std=0.3, **settings)
  model.save_pretrained(tmp_path / "hf")
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  assert load_config(tmp_path / "ours").replace(initializer="mesh_tf") == hf_models.config_of(model)
  report = interop.verify(str(tmp_path / "hf"), tmp_path / "ours")
  assert report["max_abs_difference"] < 1e-4
  assert report["greedy_agreement"] == 1.0
  ids = np.random.default_rng(0).integers(1, 61, (2, 20))
  options = {"max_new_tokens": 40, "eos_token_id": 60, "pad_token_id": 60, "do_sample": False}
  expected = model.generate(torch.tensor(ids), use_cache=True, **options)
  got = engine.load(str(tmp_path / "ours")).generate(ids, **options)
  np.testing.assert_array_equal(got.sequences, expected)
  assert len(np.unique(got.sequences[:, 20:])) > 5
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  again = opened_by_transformers(type(model), tmp_path / "back").state_dict()
  assert all(torch.equal(again[name], p) for name, p in model.state_dict().items())
  before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("hf", "back"))
  assert after == before


def test_the_head_alone_of_a_tied_pair_is_what_transformers_makes_of_it(tmp_path):
  model = make("gpt_neo", transformers.GPTNeoForCausalLM)
  model.config.save_pretrained(tmp_path / "hf")
  safetensors.torch.save_model(model, str(tmp_path / "hf/model.safetensors"))
  stored = safetensors.torch.load_file(tmp_path / "hf/model.safetensors")
  assert "lm_head.weight" in stored and "transformer.wte.weight" not in stored
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  assert interop.verify(str(tmp_path / "hf"), tmp_path / "ours")["max_abs_difference"] < 2e-5


def test_the_verifier_compares_with_no_random_weights(tmp_path):
  """Names that transformers does not know: it makes such weights at random, without an error."""
  model = make("gpt_neo", transformers.GPTNeoForCausalLM)
  model.config.save_pretrained(tmp_path / "hf")
  wrapped = {f"module.{name}": p for name, p in model.named_parameters()}
  torch.save(wrapped, tmp_path / "hf/pytorch_model.bin")
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  with pytest.raises(UserError, match=r"transformers finds no .*; convert back with orbax-to-hf"):
    interop.verify(str(tmp_path / "hf"), tmp_path / "ours")
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  assert interop.verify(str(tmp_path / "back"), tmp_path / "ours")["max_abs_difference"] < 2e-5


@pytest.mark.parametrize("family", CLASSES)
def test_the_verifier_sees_a_changed_weight(tmp_path, family):
  model = make(family, CLASSES[family][0])
  model.save_pretrained(tmp_path / "hf")
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  with torch.no_grad():
    dict(model.named_parameters())["transformer.h.2.ln_2.bias"][5] += 1e-2
  model.save_pretrained(tmp_path / "changed")
  assert interop.verify(str(tmp_path / "changed"), tmp_path / "ours")["max_abs_difference"] > 1e-4


def test_the_verifier_sees_a_wrong_window(tmp_path):
  make("gpt_neo", CLASSES["gpt_neo"][0]).save_pretrained(tmp_path / "hf")
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  path = tmp_path / "ours/config.json"
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({**fields, "window_size": fields["window_size"] - 1}))
  assert interop.verify(str(tmp_path / "hf"), tmp_path / "ours")["max_abs_difference"] > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [1, 2])
def test_pytorch_bin(tmp_path, dtype, parts):
  model = make("gpt_neo", transformers.GPTNeoForCausalLM).to(dtype)
  model.config.save_pretrained(tmp_path / "hf")
  state = model.state_dict()  # with lm_head.weight, in the memory of the embedding
  state["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
  state["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
  if parts == 1:
    torch.save(state, tmp_path / "hf/pytorch_model.bin")
  else:
    names, files = (
      list(state),
      ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    )
    for part, file in enumerate(files):
      torch.save({name: state[name] for name in names[part::2]}, tmp_path / "hf" / file)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "hf/pytorch_model.bin.index.json").write_text(index)
  interop.hf_to_orbax(str(tmp_path / "hf"), tmp_path / "ours", tokenizer=False)
  interop.orbax_to_hf(tmp_path / "ours", tmp_path / "back", tokenizer=False)
  again = opened_by_transformers(transformers.GPTNeoForCausalLM, tmp_path / "back")
  assert again.dtype == dtype
  assert all(torch.equal(p, state[name]) for name, p in again.state_dict().items())


def test_bins_as_training_scripts_save_them(tmp_path, caplog):
  """Parameters instead of tensors, and the weights as one entry of a training checkpoint."""
  model = make("gpt_neo", transformers.GPTNeoForCausalLM)
  model.config.save_pretrained(tmp_path)
  parameters = dict(model.named_parameters())
  optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
  checkpoint = {"epoch": 3, "optimizer_state_dict": optimizer, "model_state_dict": parameters}
  for saved in (parameters, checkpoint):
    torch.save(saved, tmp_path / "pytorch_model.bin")
    found = interop.open_hf(str(tmp_path)).params["wte"].load()
    assert np.array_equal(found, parameters["transformer.wte.weight"].detach())
  assert "the weights are read from its entry 'model_state_dict'" in caplog.text
  torch.save({**checkpoint, "ema": parameters}, tmp_path / "pytorch_model.bin")
  with pytest.raises(
    UserError, match=r"by name \(it holds epoch, .*, ema\): save only the model's"
  ):
    interop.open_hf(str(tmp_path))
  sparse = parameters["transformer.wte.weight"].detach().to_sparse()
  torch.save({"transformer.wte.weight": sparse}, tmp_path / "pytorch_model.bin")
  with pytest.raises(UserError, match=r"transformer.wte.weight is stored as torch\.sparse_coo"):
    interop.open_hf(str(tmp_path))


class Evil:
  def __reduce__(self):
    return (sys.exit, (3,))


def test_a_pickle_with_code_in_it(tmp_path):
  make("gpt_neo", transformers.GPTNeoForCausalLM).config.save_pretrained(tmp_path)
  for protocol, save in ((2, torch.save), (0, None)):
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
      if save:
        save({"transformer.wte.weight": Evil()}, file)
      else:
        pickle.dump(Evil(), file, protocol)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is refused: .*code") as caught:
      interop.open_hf(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_torn_bin(tmp_path):
  model = make("gpt_neo", transformers.GPTNeoForCausalLM)
  model.config.save_pretrained(tmp_path)
  path = tmp_path / "pytorch_model.bin"
  torch.save(model.state_dict(), path)
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(UserError, match=r"pytorch_model\.bin is"):
    interop.open_hf(str(tmp_path))


def test_without_torch_a_bin_says_what_to_install(tmp_path, monkeypatch):
  make("gpt_neo", transformers.GPTNeoForCausalLM).config.save_pretrained(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match=r"pytorch_model\.bin needs PyTorch: pip install"):
    interop.open_hf(str(tmp_path))


# --- the trained checkpoint ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory):
  """(the Hugging Face folder, ours)."""
  source = shared_data / "checkpoints" / "neo_docs_hf"
  ours = tmp_path_factory.mktemp("trained") / "ours"
  interop.hf_to_orbax(str(source), ours)
  return source, ours


def test_the_trained_checkpoint_computes_the_same(trained):
  report = interop.verify(str(trained[0]), trained[1])
  assert report["length"] > 2 * 256
  assert report["max_abs_difference"] < 1e-4
  assert report["greedy_agreement"] == 1.0


def test_the_trained_checkpoint_goes_back_bit_for_bit(trained, tmp_path):
  source, ours = trained
  interop.orbax_to_hf(ours, tmp_path / "back")
  again = opened_by_transformers(transformers.GPTNeoForCausalLM, tmp_path / "back")
  original = transformers.GPTNeoForCausalLM.from_pretrained(source)
  expected, actual = original.state_dict(), again.state_dict()
  assert expected.keys() == actual.keys()
  assert all(torch.equal(expected[name], actual[name]) for name in expected)
  tokenizers = [transformers.AutoTokenizer.from_pretrained(f) for f in (source, tmp_path / "back")]
  text = "The quick brown fox, 1 2 3\n\n<|endoftext|>"
  assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
  assert tokenizers[0].eos_token_id == tokenizers[1].eos_token_id


def test_the_trained_checkpoint_has_hugging_faces_perplexity(trained, shared_data):
  """On the first documents; all of minipile/val would take minutes."""
  source, ours = trained
  config = load_config(ours)
  tokenizer = transformers.AutoTokenizer.from_pretrained(source)
  documents = list(
    data.evaluation_documents(
      DataConfig(
        source="jsonl",
        path=str(shared_data / "minipile/train/*"),
        validation_path=str(shared_data / "minipile/val.jsonl.zst"),
      ),
      "validation",
      limit_documents=3,
    )
  )
  batches = lambda: data.EvaluationBatches(
    documents, tokenizer, batch_size=1, seq_len=config.max_position_embeddings
  )
  opened = interop.open_hf(str(source))
  params = jax.tree.map(lambda leaf: leaf.load(), opened.params)
  module = heads.build(config)

  @jax.jit
  def our_nll(params, inputs, targets, weights):
    logits = module.apply({"params": params}, inputs, method="logits")
    return token_losses(logits, targets, weights).nll_BxT

  model = transformers.GPTNeoForCausalLM.from_pretrained(source, attn_implementation="eager").eval()

  def their_nll(batch):
    with torch.no_grad():
      logits = model(torch.from_numpy(batch["inputs"]).long(), use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(
      logits.transpose(1, 2), torch.from_numpy(batch["targets"]).long(), reduction="none"
    )
    return (nll * torch.from_numpy(batch["weights"])).numpy()

  theirs = perplexity.evaluate(their_nll, batches())["eval/perplexity"]
  found = perplexity.evaluate(
    lambda b: our_nll(params, b["inputs"], b["targets"], b["weights"]), batches()
  )["eval/perplexity"]
  assert theirs < config.vocab_size / 4  # it has learnt something
  assert found == pytest.approx(theirs, rel=1e-5)


def test_open_params_match_the_tests_own_conversion():
  """hf_models converts on its own; the product's table must agree with it."""
  for family in CLASSES:
    model = getattr(hf_models, family)()
    config = hf_models.config_of(model)
    shapes = name_map.leaf_shapes(config)
    expected = hf_models.to_params(hf_models.tensors(model), config)
    flat = {
      "/".join(key.key for key in keys): leaf
      for keys, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    for entry in name_map.entries(config):
      theirs = dict(model.named_parameters())[entry.name].detach().numpy()
      for part, path in enumerate(entry.paths):
        leaf = flat[path] if entry.index is None else flat[path][entry.index]
        shape = shapes[path] if entry.index is None else shapes[path][1:]
        np.testing.assert_array_equal(name_map.from_hf(entry, theirs, part, shape), leaf)
