"""Runs of LoRA and of frozen parts, from start to export: what learns, and what stays as it was."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import interop, model_io
from gptneo_jax.checkpoints import adapters, lazy, reading
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.interop import peft_files
from gptneo_jax.model import heads, lora, methods
from gptneo_jax.train import run
from gptneo_jax.training import run_config
from tests.helpers.small_runs import texts, write_jsonl

MODEL = ModelConfig(
  hidden_size=16, num_layers=2, num_heads=2, vocab_size=299, max_position_embeddings=16,
  window_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_jsonl(tmp_path_factory.mktemp("corpus") / "train.jsonl", texts(60))


def config_of(corpus, **changes):
  config = run_config.base(MODEL)
  config.update(steps=4, batch_size=4, eval_every=2, checkpoint_every=2, log_every=1)
  config.schedule.update(warmup_steps=0, decay_steps=6)
  config.optimizer.learning_rate = 0.03
  config.data.update(path=corpus, num_streams=2, tokenizer="train", validation_fraction=0.05)
  config.data.test_fraction, config.eval.sample_tokens = 0.0, 0
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config


def equal(one, other):
  return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
  """A folder of our own with a trained tokenizer, to fine-tune from."""
  folder = tmp_path_factory.mktemp("start") / "run"
  assert run(config_of(corpus, steps=2), str(folder)) == 0
  return folder


@pytest.fixture(scope="module")
def of_lora(start, corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp("lora") / "run"
  config = config_of(corpus, init_from=str(start), lora__rank=3, lora__alpha=6.0)
  assert run(config, str(folder)) == 0
  return folder


def test_a_folder_of_lora_stands_alone(start, of_lora, tmp_path):
  """The base is as it was, bit for bit; a step holds factors, and their optimizer's state."""
  base, adapted = gptneo_jax.load(start), gptneo_jax.load(of_lora)
  assert equal(gptneo_jax.load(of_lora / "base").params, base.params)
  held = methods.paths(reading.params_metadata(str(of_lora), 4))
  assert {path.split("/")[-1] for path in held} == {"lora_a", "lora_b"}
  with_factors = lora.combine(
    base.params, adapters.adapter_of(lazy.read_learned(of_lora, 4), adapters.settings_of(of_lora))
  )
  ids = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
  applied = heads.build(MODEL).apply({"params": with_factors}, jnp.asarray(ids), method="logits")
  np.testing.assert_allclose(adapted.logits(ids), applied[..., :299], atol=1e-5)
  assert np.abs(adapted.logits(ids) - base.logits(ids)).max() > 1e-3
  of_peft = gptneo_jax.load(start, adapter=str(of_lora / "adapter"))
  np.testing.assert_allclose(of_peft.logits(ids), adapted.logits(ids), atol=1e-5)
  settings = json.loads((of_lora / "adapter" / peft_files.CONFIG_FILE).read_text())
  assert (settings["r"], settings["lora_alpha"]) == (3, 6.0)
  assert settings["base_model_name_or_path"] == str(start)

  older = gptneo_jax.load(of_lora / "2")
  assert not equal(older.params, adapted.params)
  best = gptneo_jax.load(of_lora, step="best")
  assert equal(best.params, older.params) or equal(best.params, adapted.params)
  interop.orbax_to_hf(of_lora, tmp_path / "hf", step=2)
  exported = gptneo_jax.load(str(tmp_path / "hf"))
  np.testing.assert_allclose(exported.logits(ids), older.logits(ids), atol=1e-5)
  interop.export_adapter(of_lora, tmp_path / "adapter", step=2)
  beside = gptneo_jax.load(start, adapter=str(tmp_path / "adapter"))
  np.testing.assert_allclose(beside.logits(ids), older.logits(ids), atol=1e-5)
  with pytest.raises(UserError, match="no run of LoRA"):
    interop.export_adapter(start, tmp_path / "none")
  started = model_io.start_from(str(of_lora), MODEL, model_io.first_device())
  assert equal(started, adapted.params)


@pytest.mark.parametrize("base", ["", "int4"])
def test_resumed_it_is_bitwise_the_same(base, start, corpus, tmp_path, capsys):
  """Dropout, noise and factors have keys of their own for each step."""
  changes = dict(init_from=str(start), lora__rank=2, lora__base=base, neftune_alpha=5.0)
  assert run(config_of(corpus, **changes), str(tmp_path / "whole")) == 0
  said = capsys.readouterr().out
  assert bool(base) == ("merged into the base as it was" in said)
  summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
  merged_loss = summary.get("eval_merged_loss")
  assert bool(base) == bool(merged_loss) == (f"loads as, {merged_loss or 0:.4f}" in said)
  trainable = 2 * (3 * 32 + 32 + 2 * 80) * 2
  assert f"{trainable:,} trainable: LoRA of rank 2 on q, k, v, out, c_fc, c_proj" in said
  assert "scale = alpha / r = 8" in said.splitlines()[0]
  for steps in (2, 4):
    assert run(config_of(corpus, steps=steps, **changes), str(tmp_path / "parts")) == 0
  assert "resuming from step 2" in capsys.readouterr().out
  whole, parts = (lazy.read_learned(tmp_path / name, 4) for name in ("whole", "parts"))
  assert equal(whole, parts)
  base_params = gptneo_jax.load(tmp_path / "whole" / "base").params
  assert equal(base_params, gptneo_jax.load(start).params)


def test_with_muon_it_resumes_bitwise_too(corpus, tmp_path):
  settings = {"optimizer__name": "muon", "optimizer__weight_decay": 0.1}
  folders = [tmp_path / name for name in ("whole", "resumed")]
  assert run(config_of(corpus, **settings), str(folders[0])) == 0
  for steps in (2, 4):
    assert run(config_of(corpus, **settings, steps=steps), str(folders[1])) == 0
  params, resumed = (gptneo_jax.load(folder).params for folder in folders)
  assert equal(params, resumed)


def test_muon_without_a_kernel_is_refused(start, corpus, tmp_path):
  config = config_of(corpus, init_from=str(start), lora__rank=2, optimizer__name="muon")
  with pytest.raises(UserError, match="none of these learns; take 'adamw'"):
    run(config, str(tmp_path / "run"))


def test_a_folder_of_another_method_is_refused(start, of_lora, corpus):
  for changes in (
    dict(),
    dict(lora__rank=3),
    dict(lora__rank=3, lora__alpha=6.0, lora__base="int8"),
  ):
    with pytest.raises(UserError, match=r"keeps what it began with .*lora\."):
      run(config_of(corpus, init_from=str(start), **changes), str(of_lora))


def test_frozen_parts(start, corpus, tmp_path):
  """They are in each checkpoint, as they were; the rest learns."""
  config = config_of(corpus, init_from=str(start), frozen="^w[tp]e$")
  assert run(config, str(tmp_path / "run")) == 0
  before, after = (methods.paths(gptneo_jax.load(f).params) for f in (start, tmp_path / "run"))
  changed = {path for path in before if not equal(before[path], after[path])}
  assert changed == before.keys() - {"wte", "wpe"}
  config.steps = 5
  assert run(config, str(tmp_path / "run")) == 0
  config.frozen = "no_such_part"
  with pytest.raises(UserError, match=r"matches nothing that learns; what learns is .*ln_f/scale"):
    run(config, str(tmp_path / "other"))
