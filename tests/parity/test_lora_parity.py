"""Adapters that PEFT makes give PEFT's logits here, and those written here give ours there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import safetensors.torch  # noqa: E402

from gptneo_jax.errors import UserError  # noqa: E402
from gptneo_jax.interop import peft_files  # noqa: E402
from gptneo_jax.model import heads, lora  # noqa: E402
from tests.helpers import hf_models  # noqa: E402

pytestmark = [
  pytest.mark.parity,
  # PEFT on being asked for GPT-2's Conv1D, and on our writing no model card
  pytest.mark.filterwarnings("ignore"),
]

IDS = np.random.default_rng(0).integers(0, 61, (2, 20))


def make_model(family, head="lm", **options):
  cls = hf_models.CLASSES[family][head]
  return getattr(hf_models, family)(layers=4, cls=cls, pad_token_id=60, **options)


def make_adapter(model, folder, **settings):
  """Has PEFT make one, with both factors at random, and save it; its logits."""
  adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, p in adapted.named_parameters():
      if "lora_" in name or "modules_to_save" in name:
        p.copy_(0.2 * torch.randn(p.shape, generator=generator))
  adapted.eval().save_pretrained(str(folder))
  with torch.no_grad():
    return adapted(torch.tensor(IDS)).logits.numpy()


def our_logits(config, params, adapter=None):
  variables = {"params": jax.tree.map(jnp.asarray, lora.combine(params, adapter or {}))}
  method = "logits" if config.head == "lm" else "outputs"
  run = lambda variables: heads.build(config).apply(variables, IDS, method=method)
  return np.asarray(jax.jit(run)(variables))


ADAPTERS = {
  "defaults": ("gpt_neo", "lm", dict(task_type="CAUSAL_LM")),
  "all matrices, patterns, rslora": (
    "gpt_neo",
    "lm",
    dict(
      r=3, lora_alpha=5, use_rslora=True, rank_pattern={"k_proj": 5, "h.1.mlp.c_fc": 1},
      alpha_pattern={"out_proj": 7},
      target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    ),
  ),
  "some layers": (
    "gpt_neo", "lm", dict(target_modules=["v_proj"], layers_to_transform=[1, 2], lora_dropout=0.1),
  ),
  "by a regular expression": ("gpt_neo", "lm", dict(target_modules=r".*h\.0\..*q_proj")),
  "with its head": ("gpt_neo", "sequence_classification", dict(task_type="SEQ_CLS", r=2)),
  "gpt2": ("gpt2", "lm", dict(target_modules=["c_attn", "c_proj", "c_fc"], lora_alpha=16)),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_peft(name, tmp_path):
  """Applied and merged, and written again by us and opened by PEFT: the same logits."""
  family, head, settings = ADAPTERS[name]
  model = make_model(family, head)
  config = hf_models.config_of(model)
  params = hf_models.to_params(hf_models.tensors(model), config)
  plain = our_logits(config, params)
  theirs = make_adapter(model, tmp_path / "theirs", **settings)
  adapter = peft_files.read_adapter(tmp_path / "theirs", config)
  applied = our_logits(config, params, adapter)
  merged = our_logits(config, lora.merged(params, adapter))
  errors = [float(np.abs(ours - theirs).max()) for ours in (applied, merged)]
  print(f"{name}: applied {errors[0]:.1e}, merged {errors[1]:.1e}")
  assert max(errors) <= 1e-4
  assert np.abs(plain - theirs).max() > 0.01

  peft_files.write_adapter(tmp_path / "ours", config, adapter)
  opened = peft.PeftModel.from_pretrained(make_model(family, head), str(tmp_path / "ours")).eval()
  with torch.no_grad():
    again = opened(torch.tensor(IDS)).logits.numpy()
  assert np.abs(again - theirs).max() <= 1e-4


def test_separate_factors_of_gpt2(tmp_path):
  """q, k and v with factors of their own, or only some of them: one wider pair for PEFT."""
  model = make_model("gpt2")
  config = hf_models.config_of(model)
  params = hf_models.to_params(hf_models.tensors(model), config)
  rng = np.random.default_rng(2)
  draw = lambda *shape: rng.standard_normal((4, *shape)).astype(np.float32)
  scale = {"lora_scale": np.full(4, 0.1, np.float32)}
  pair = lambda: {"lora_a": draw(24, 2), "lora_b": draw(2, 4, 6), **scale}
  layer = {
    "attn": {"q": pair(), "v": pair()},
    "mlp": {"c_fc": {"lora_a": draw(24, 2), "lora_b": draw(2, 96), **scale}},
  }
  adapter = {"blocks": {"layer_0": layer}}
  peft_files.write_adapter(tmp_path, config, adapter)
  opened = peft.PeftModel.from_pretrained(model, str(tmp_path)).eval()
  with torch.no_grad():
    theirs = opened(torch.tensor(IDS)).logits.numpy()
  assert np.abs(our_logits(config, params, adapter) - theirs).max() <= 1e-4
  again = peft_files.read_adapter(tmp_path, config)
  assert np.abs(our_logits(config, lora.merged(params, again)) - theirs).max() <= 1e-4


@pytest.mark.parametrize(
  "settings, name",
  [
    (dict(use_dora=True), "use_dora"),
    (dict(bias="all"), "bias"),
    (dict(lora_bias=True), "lora_bias"),
    (dict(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    (dict(init_lora_weights="pissa"), "init_lora_weights"),
  ],
)
def test_what_is_not_implemented_is_refused(settings, name, tmp_path):
  model = make_model("gpt_neo")
  config = hf_models.config_of(model)
  make_adapter(model, tmp_path, **settings)
  with pytest.raises(UserError, match=f"adapter_config.json: {name} is .*not supported"):
    peft_files.read_adapter(tmp_path, config)


def test_embedding_adapters_are_refused_by_tensor(tmp_path):
  model = make_model("gpt_neo")
  config = hf_models.config_of(model)
  make_adapter(model, tmp_path, target_modules=["wte", "q_proj"])
  with pytest.raises(UserError, match=r"holds transformer\.wte\.lora_embedding_A, which does not"):
    peft_files.read_adapter(tmp_path, config)


def test_an_adapter_in_a_bin(tmp_path):
  """As PEFT saved them before it had safetensors."""
  model = make_model("gpt_neo")
  config = hf_models.config_of(model)
  make_adapter(model, tmp_path, task_type="CAUSAL_LM")
  expected = peft_files.read_adapter(tmp_path, config)
  file = tmp_path / "adapter_model.safetensors"
  torch.save(safetensors.torch.load_file(file), tmp_path / "adapter_model.bin")
  file.unlink()
  jax.tree.map(
    np.testing.assert_array_equal,
    peft_files.read_adapter(tmp_path, config),
    expected,
  )


def test_another_kind_of_adapter(tmp_path):
  (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
  config = hf_models.config_of(make_model("gpt_neo"))
  with pytest.raises(UserError, match="peft_type is 'IA3'; only 'LORA'"):
    peft_files.read_adapter(tmp_path, config)
