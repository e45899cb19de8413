"""Where a run starts from: its own checkpoint with other settings, or weights of another model."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data, interop, model_io
from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.train import run
from gptneo_jax.training import parse_config, run_config, run_tokenizer
from tests.helpers import hub_cache
from tests.helpers.data_rows import byte_tokenizer
from tests.helpers.small_runs import texts, write_jsonl

MODEL = ModelConfig(
  hidden_size=16, num_layers=2, num_heads=2, vocab_size=299, max_position_embeddings=16,
  window_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_jsonl(tmp_path_factory.mktemp("corpus") / "train.jsonl", texts(60))


def _config(corpus, **changes):
  config = run_config.base(MODEL)
  config.update(steps=4, batch_size=4, eval_every=0, checkpoint_every=2, log_every=1)
  config.schedule.update(warmup_steps=2, decay_steps=6)
  config.data.update(path=corpus, num_streams=2, tokenizer="train", validation_fraction=0.0)
  config.data.test_fraction, config.eval.sample_tokens = 0.0, 0
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config


def _losses(workdir):
  return [json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
  """A run of four steps, with checkpoints 2 and 4."""
  folder = tmp_path_factory.mktemp("first") / "run"
  assert run(_config(corpus), str(folder)) == 0
  return folder


def test_a_run_goes_on_with_other_settings(first, corpus, tmp_path, capsys):
  """Padding of the tables changes no loss; what else changed is said, line by line."""
  for name, changes in (
    ("same", {}),
    ("padded", {"model__vocab_multiple": 8}),
    ("recipe", {"optimizer__weight_decay": 0.0, "optimizer__clip_norm": 0.0, "seed": 0}),
  ):
    shutil.copytree(first, tmp_path / name)
    capsys.readouterr()
    assert run(_config(corpus, steps=6, **changes), str(tmp_path / name)) == 0
    said = capsys.readouterr().out
    assert "resuming from step 4\n" in said and "\nsteps: 4 -> 6\n" in said
  assert {"optimizer.weight_decay: 0.1 -> 0.0", "optimizer.clip_norm: 1.0 -> 0.0"} < {
    *said.splitlines()
  }
  same, padded, recipe = (_losses(tmp_path / name) for name in ("same", "padded", "recipe"))
  np.testing.assert_allclose(padded, same, rtol=1e-5)
  assert recipe[:5] == same[:5] and recipe[5] != same[5]
  record = json.loads((tmp_path / "padded" / "run_config.json").read_text())
  assert record["changes"] == ["step 4: model.vocab_multiple: 1 -> 8", "step 4: steps: 4 -> 6"]

  # Each checkpoint has the padding of its time, and is the same model for all that open it.
  lm, older = (gptneo_jax.load(tmp_path / "padded", step=step) for step in (6, 4))
  assert lm.params["wte"].shape == older.params["wte"].shape == (304, 16)
  np.testing.assert_array_equal(older.params["wte"][:299], gptneo_jax.load(first).params["wte"])
  interop.orbax_to_hf(tmp_path / "padded", tmp_path / "hf", step=4)
  np.testing.assert_array_equal(
    gptneo_jax.load(str(tmp_path / "hf")).params["wte"], older.params["wte"][:299]
  )


def test_a_setting_that_a_run_keeps_is_refused_at_once(first, corpus):
  with pytest.raises(UserError, match=r"batch_size 4, not 8: .* --config\.init_from="):
    run(_config(corpus, batch_size=8), str(first))
  with pytest.raises(UserError, match=r"held_out was .* --workdir NEW --config\.init_from="):
    run(_config(corpus, data__test_fraction=0.3), str(first))


@pytest.fixture(scope="module")
def sources(first, tmp_path_factory):
  folder = tmp_path_factory.mktemp("hf") / "model"
  interop.orbax_to_hf(first, folder)
  return {"folder": str(first), "step": str(first / "4"), "hugging_face": str(folder)}


@pytest.mark.parametrize("kind", ["folder", "step", "hugging_face"])
def test_weights_to_start_from(kind, sources):
  """Whatever `load` takes; layout, type and dropout are those of the run."""
  mesh = model_io.first_device()
  config = MODEL.replace(vocab_multiple=8, param_dtype="bfloat16", resid_dropout=0.1)
  params = model_io.start_from(sources[kind], config, mesh)
  expected = gptneo_jax.load(sources["folder"]).params
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  assert params["wte"].shape == (304, 16) and not params["wte"][299:].any()
  np.testing.assert_array_equal(params["wte"][:299], expected["wte"].astype(jnp.bfloat16))
  np.testing.assert_array_equal(
    params["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"],
    expected["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"].astype(jnp.bfloat16),
  )


@pytest.mark.parametrize("kind", ["folder", "hugging_face"])
@pytest.mark.parametrize(
  "changes",
  [
    {"window_size": 5},
    {"layer_norm_epsilon": 1e-6},
    {"attention_pattern": ("local", "global")},
    {"activation_function": "relu"},
    {"num_heads": 4},
    {"max_position_embeddings": 8},
  ],
)
def test_weights_of_another_model_are_refused_though_their_shapes_agree(kind, changes, sources):
  (name,) = changes
  with pytest.raises(UserError, match=rf"different model \(here != there: {name}: .*\); give"):
    model_io.start_from(sources[kind], MODEL.replace(**changes), model_io.first_device())


@pytest.mark.parametrize("kind", ["folder", "hugging_face"])
def test_more_ids_and_another_head(kind, sources):
  """Rows of added tokens differ as old ones do: a model must tell them apart. Its head is drawn."""
  mesh, old = model_io.first_device(), gptneo_jax.load(sources["folder"]).params
  config = MODEL.replace(
    vocab_size=340, vocab_multiple=8, head="token_classification", num_labels=40
  )
  with pytest.raises(UserError, match="different model"):
    model_io.start_from(sources[kind], config, mesh)
  start = functools.partial(model_io.start_from, sources[kind], config, mesh, adapt=True)
  params = start(seed=1)
  rows, before = np.asarray(params["wte"]), np.asarray(old["wte"])[:299]
  np.testing.assert_array_equal(rows[:299], before)
  assert rows.shape == (344, 16) and not rows[340:].any()
  new = rows[299:340]
  np.testing.assert_allclose(new.mean(0), before.mean(0), atol=4 * before.std() / 41**0.5)
  assert new.std() == pytest.approx(before.std(), rel=0.2)
  distances = np.linalg.norm(new[:, None] - new[None], axis=-1) + np.eye(41)
  assert distances.min() > 0.3 * np.linalg.norm(before.std(0))
  head = params["head"]
  assert not head["bias"].any() and float(head["kernel"].std()) == pytest.approx(0.02, rel=0.1)
  jax.tree.map(np.testing.assert_array_equal, params["blocks"], old["blocks"])
  jax.tree.map(np.testing.assert_array_equal, start(seed=1), params)
  assert np.abs(start(seed=2)["wte"][299:340] - new).max() > 0
  with pytest.raises(UserError, match=r"different model \(here != there: window_size"):
    model_io.start_from(sources[kind], config.replace(window_size=5), mesh, adapt=True)


def test_a_head_is_kept_where_its_labels_are_the_same(tmp_path):
  config = MODEL.replace(head="sequence_classification", num_labels=3, id2label=("a", "b", "c"))
  lm = gptneo_jax.init(config)
  lm.save(str(tmp_path / "one"))
  start = functools.partial(
    model_io.start_from, str(tmp_path / "one"), mesh=model_io.first_device(), adapt=True
  )
  same = start(config.replace(vocab_size=300))
  np.testing.assert_array_equal(same["head"]["kernel"], lm.params["head"]["kernel"])
  others = start(config.replace(id2label=("a", "b", "d")))
  assert np.abs(others["head"]["kernel"] - lm.params["head"]["kernel"]).max() > 0
  assert "head" not in start(config.replace(head="lm"))


def test_a_run_starts_from_a_step_of_another(first, corpus, tmp_path, capsys):
  config = _config(corpus, init_from=str(first / "4"), steps=1)
  assert run(config, str(tmp_path / "run")) == 0
  assert f"weights from {first / '4'}" in capsys.readouterr().out
  assert _losses(tmp_path / "run")[0] < _losses(first)[0] - 0.01
  # The same ids with other tokens: refused before the run has made anything of it.
  folder = tmp_path / "bytes"
  byte_tokenizer().save_pretrained(folder)
  config = _config(corpus, init_from=str(first), data__tokenizer=str(folder))
  with pytest.raises(UserError, match=r"of 257 ids mean other tokens, such as 0: '<\|endoftext"):
    run(config, str(tmp_path / "other"))


def test_the_tokenizer_of_the_weights(sources):
  own = data.load_tokenizer(sources["folder"])
  for source in sources.values():
    run_tokenizer.check_of_weights(own, source)
    with pytest.raises(UserError, match=r"another tokenizer .* take its own: --config\.data"):
      run_tokenizer.check_of_weights(byte_tokenizer(), source)


def test_the_sections_know_the_padding(corpus):
  assert parse_config.read(_config(corpus, model__vocab_multiple=8)).model.padded_vocab_size == 304


def test_a_revision_of_the_hub(corpus, tmp_path, monkeypatch, capsys):
  """Its weights and its tokenizer are taken; the commit is said, and stays in the run's record."""
  old, new = "1" * 40, "2" * 40
  for seed, (commit, ref) in enumerate({old: "v1", new: "main"}.items()):
    initial = model_io.init(MODEL, seed, model_io.first_device())
    model_io.save(str(tmp_path / commit), initial, byte_tokenizer())
    interop.orbax_to_hf(str(tmp_path / commit), str(tmp_path / ref))
    hub_cache.write(tmp_path / "hub", "org/model", commit, tmp_path / ref, ref)
  hub_cache.use(monkeypatch, tmp_path / "hub")
  settings = {"data__tokenizer": "init_from", "steps": 2}
  losses = {}
  for name, commit in (("org/model@v1", old), ("org/model", new)):
    workdir = tmp_path / f"run-{len(losses)}"
    assert run(_config(corpus, init_from=name, **settings), str(workdir)) == 0
    said = capsys.readouterr().out
    assert f"weights from {name} at {commit[:7]}\n" in said
    assert f"tokenizer: 257 ids, of {name} at {commit[:7]}\n" in said
    assert json.loads((workdir / "run_config.json").read_text())["hub"] == {"init_from": commit}
    losses[name] = _losses(workdir)
  assert losses["org/model@v1"] != losses["org/model"]
  (tmp_path / "hub/models--org--model/refs/v1").write_text(new)  # the tag has moved
  config = _config(corpus, init_from="org/model@v1", **settings | {"steps": 3})
  assert run(config, str(tmp_path / "run-0")) == 0
  record = json.loads((tmp_path / "run-0/run_config.json").read_text())
  assert record["hub"] == {"init_from": old}
