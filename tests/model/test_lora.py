"""Low-rank factors: beside the weights, merged at once and merged slice by slice are one model."""

import jax
import numpy as np
import pytest

from gptneo_jax.model import heads, lora
from tests.helpers.small_adapters import CONFIG, draw, small_adapter
from tests.helpers.small_models import random_params


@pytest.fixture
def adapter():
  return small_adapter(scale=0.3)


@pytest.fixture
def params():
  return random_params(CONFIG, seed=9)


def test_merge_is_the_product_of_the_factors(adapter, params):
  merged = lora.merged(params, adapter)
  attention, old = (tree["blocks"]["layer_1"]["attn"] for tree in (merged, params))
  q, out = (lora.at(adapter, f"blocks/layer_1/attn/{name}") for name in ("q", "out"))
  change = 2.0 * np.einsum("ndr,nrhk->ndhk", q["lora_a"], q["lora_b"])
  np.testing.assert_allclose(attention["q"]["kernel"], old["q"]["kernel"] + change, atol=1e-5)
  change = 2.0 * np.einsum("nhkr,nrd->nhkd", out["lora_a"], out["lora_b"])
  np.testing.assert_allclose(attention["out"]["kernel"], old["out"]["kernel"] + change, atol=1e-5)
  np.testing.assert_array_equal(attention["out"]["bias"], old["out"]["bias"])
  v, old = (tree["blocks"]["layer_0"]["attn"]["v"] for tree in (merged, params))
  assert v["kernel"] is old["kernel"]
  assert lora.at(adapter, "blocks/layer_0/attn/v") == lora.at(adapter, "ln_f") == {}


def test_applied_beside_the_weights_is_merged(adapter, params):
  model = heads.build(CONFIG)
  ids_BxT = np.random.default_rng(0).integers(0, 53, (2, 12))
  logits = jax.jit(lambda variables: model.apply(variables, ids_BxT, method="logits"))
  plain = logits({"params": params})
  applied = logits({"params": lora.combine(params, adapter)})
  merged = logits({"params": lora.merged(params, adapter)})
  assert np.abs(applied - plain).max() > 0.1
  np.testing.assert_allclose(applied, merged, atol=2e-5)


def test_merged_slice_by_slice_is_merged_at_once(adapter, params):
  whole = lora.merged(params, adapter)
  for (keys, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(whole)):
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    if not path.startswith("blocks/"):
      assert lora.merge_slice(adapter, path, None, old) is old
      continue
    slices = [lora.merge_slice(adapter, path, n, np.asarray(old[n])) for n in range(2)]
    np.testing.assert_allclose(np.stack(slices), new, atol=1e-6, err_msg=path)


def test_a_head_trained_in_full_takes_the_place_of_the_old():
  config = CONFIG.replace(head="sequence_classification", num_labels=3)
  params = random_params(config)
  head = {"kernel": draw(16, 3, seed=6, scale=0.3)}
  adapter = {"head": head}
  merged = lora.merged(params, adapter)
  np.testing.assert_array_equal(merged["head"]["kernel"], head["kernel"])
  old = np.asarray(params["head"]["kernel"])
  new = lora.merge_slice(adapter, "head/kernel", None, old)
  np.testing.assert_array_equal(new, head["kernel"])
