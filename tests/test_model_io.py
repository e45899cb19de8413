"""The weights of a model: types, replacement, saving and loading, resizing, meshes."""

import math
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax.errors import UserError
from tests.helpers import compiling
from tests.helpers.text_models import TINY, make, make_tokenizer


@pytest.fixture(scope="module")
def lm():
  return make(tokenizer=make_tokenizer())


def ids(B=2, T=9, seed=0):
  return np.random.default_rng(seed).integers(0, 280, (B, T))


def test_types_of_jax_and_numpy_are_types(lm, tmp_path):
  lm.save(str(tmp_path / "saved"))
  for dtype, name in ((jnp.bfloat16, "bfloat16"), (np.float32, "float32")):
    again = gptneo_jax.load(str(tmp_path / "saved"), dtype=dtype)
    assert (again.config.dtype, again.config.param_dtype) == (name, name)
    assert TINY.replace(dtype=dtype) == TINY.replace(dtype=name)
  for wrong in (jnp.int32, 3):
    with pytest.raises(UserError, match=r"param_dtype is .*; it must be one of float32"):
      gptneo_jax.load(str(tmp_path / "saved"), dtype=wrong)


def test_other_params(lm):
  other, third = make(TINY, seed=5), make(TINY, seed=6)
  before = other.generate([[1, 2, 3]], max_new_tokens=6).sequences
  other.params = jax.tree.map(np.asarray, lm.params)
  np.testing.assert_array_equal(other.logits(ids()), lm.logits(ids()))
  after = other.generate([[1, 2, 3]], max_new_tokens=6, eos_token_id=-1).sequences
  expected = lm.generate([[1, 2, 3]], max_new_tokens=6, eos_token_id=-1).sequences
  np.testing.assert_array_equal(after, expected)
  assert (after != before).any()
  other.params["wte"] = third.params["wte"]  # in place: decoding's copy is made anew
  third.params = {**lm.params, "wte": third.params["wte"]}
  changed = [x.generate([[1, 2, 3]], max_new_tokens=6).sequences for x in (other, third)]
  np.testing.assert_array_equal(*changed)
  with pytest.raises(UserError, match=r"lm\.params: wpe is \(3, 16\), and the model's is \(96"):
    other.params = {**lm.params, "wpe": np.zeros((3, 16))}
  with pytest.raises(UserError, match=r"lm\.params: blocks/layer_0/attn/k/kernel is absent"):
    other.params = {"params": lm.params}


def test_save_and_load(lm, tmp_path):
  lm.save(str(tmp_path / "saved"))
  again = gptneo_jax.load(str(tmp_path / "saved"))
  assert again.config == lm.config
  jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
  assert again.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
  assert again.generate("the dog").texts == lm.generate("the dog").texts
  half = gptneo_jax.load(str(tmp_path / "saved"), dtype="bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(half.params)} == {"bfloat16"}
  assert half.logits(ids()).dtype == np.float32
  with pytest.raises(UserError, match="not empty"):
    lm.save(str(tmp_path / "saved"))
  with pytest.raises(UserError, match="float8"):
    gptneo_jax.load(str(tmp_path / "saved"), dtype="float8")
  with pytest.raises(UserError, match="nowhere"):
    gptneo_jax.load(str(tmp_path / "nowhere"))


def test_resize_vocabulary():
  """Old rows stay; new ones lie at the mean, a little apart; smaller again is as it was."""
  lm = make(TINY.replace(tie_word_embeddings=False, vocab_multiple=8), seed=1)
  before = lm.logits(ids())
  tables = {name: np.asarray(lm.params[name])[:280] for name in ("wte", "lm_head")}
  lm.resize_vocabulary(333)
  assert (lm.config.vocab_size, lm.params["wte"].shape) == (333, (336, 16))
  for name, old in tables.items():
    new = np.asarray(lm.params[name])
    np.testing.assert_array_equal(new[:280], old)
    np.testing.assert_allclose(new[280:333], old.mean(0)[None].repeat(53, 0), atol=1e-3)
    spread = (new[280:333] - old.mean(0)).std() / old.std()
    assert spread == pytest.approx(math.sqrt(1e-9), rel=0.3)
  after = lm.logits(ids())
  assert after.shape == (2, 9, 333)
  np.testing.assert_allclose(after[..., :280], before, atol=2e-6)
  lm.resize_vocabulary(280)
  np.testing.assert_allclose(lm.logits(ids()), before, atol=2e-6)


def test_init_is_by_its_seed():
  first, same, other = (gptneo_jax.init(TINY, seed=seed) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first.params, same.params)
  assert np.abs(first.params["wte"] - other.params["wte"]).max() > 0
  assert first.params["wte"].std() == pytest.approx(0.02, rel=0.1)


def test_public_names():
  assert gptneo_jax.__version__.count(".") == 2
  assert set(gptneo_jax.__all__) <= set(dir(gptneo_jax))
  with pytest.raises(AttributeError, match="'nothing'"):
    gptneo_jax.nothing  # noqa: B018


def run_python(code, **environment):
  import os

  command = [sys.executable, "-c", textwrap.dedent(code)]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.processes
def test_needs_no_torch(lm, tmp_path):
  """Where torch cannot be imported: load, run, score, generate, save."""
  lm.save(str(tmp_path / "saved"))
  out = run_python(f"""
    import sys
    sys.modules["torch"] = None  # importing it raises ImportError
    import gptneo_jax
    lm = gptneo_jax.load({str(tmp_path / "saved")!r})
    lm.logits([[1, 2, 3]]), lm.score(["the dog"]), lm.generate("the dog", max_new_tokens=2)
    lm.save({str(tmp_path / "again")!r})
    print("done")
  """)
  assert out == "done\n"


@pytest.mark.processes
def test_on_a_mesh(lm, tmp_path):
  """Four devices, and a vocabulary that they do not divide: the same numbers."""
  lm.save(str(tmp_path / "saved"))
  np.save(tmp_path / "logits.npy", lm.logits(ids(B=3)))
  out = run_python(
    f"""
    import numpy as np
    import gptneo_jax
    from gptneo_jax.sharding import make_mesh
    lm = gptneo_jax.load({str(tmp_path / "saved")!r})
    lm.resize_vocabulary(281)
    lm.save({str(tmp_path / "odd")!r})
    lm = gptneo_jax.load({str(tmp_path / "odd")!r}, mesh=make_mesh(data=1, fsdp=2, tensor=2))
    assert lm.params["wte"].shape == (282, 16) and len(lm.params["wte"].sharding.device_set) == 4
    ids = np.random.default_rng(0).integers(0, 280, (3, 9))
    logits = lm.logits(ids)
    assert logits.shape == (3, 9, 281)
    print(np.abs(logits[..., :280] - np.load({str(tmp_path / "logits.npy")!r})).max())
    print(lm.score(["the dog"])[0].nll, lm.generate("the dog", max_new_tokens=3).texts)
    """,
    **compiling.on_devices(4),
  ).splitlines()
  assert float(out[0]) < 2e-5
