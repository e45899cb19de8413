"""Shapes without values are those of the values."""

import jax
import pytest

from gptneo_jax import sharding
from gptneo_jax.config import PRESETS
from gptneo_jax.model import heads
from gptneo_jax.model.parameters import abstract_params, init_params
from tests.helpers.small_models import NEO


def test_shapes_are_those_of_the_first_values():
  model = heads.build(NEO.replace(head="token_classification", num_labels=3))
  made = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
  expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)
  assert abstract_params(model) == expected
  assert sum(x.size for x in jax.tree.leaves(made)) > 1000


def test_shardings_on_a_mesh():
  model = heads.build(PRESETS["neo_125m"].replace(vocab_multiple=128))
  mesh = sharding.abstract_mesh(1, 2, 4, 8)
  kernel = abstract_params(model, mesh)["blocks"]["layer_0"]["mlp"]["c_fc"]["kernel"]
  assert kernel.shape == (6, 768, 3072)
  assert kernel.sharding.shard_shape(kernel.shape) == (6, 384, 768)
  with pytest.raises(ValueError, match=r"mesh\.tensor=5 does not divide the"):
    abstract_params(model, sharding.abstract_mesh(1, 1, 5, 5))
