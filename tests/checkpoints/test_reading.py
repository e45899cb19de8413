"""Parameters are read without a Checkpointer, and only into the model that was saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptneo_jax.checkpoints import manager
from gptneo_jax.checkpoints.reading import params_metadata, restore_params
from gptneo_jax.checkpoints.step_folders import CheckpointError, latest_step, saved_steps
from tests.helpers.checkpoint_runs import abstract, state_of


def test_reading_without_a_checkpointer(two_steps, tmp_path):
  params, _ = state_of(2)
  assert saved_steps(two_steps) == [1, 2]
  assert latest_step(two_steps) == 2
  assert latest_step(tmp_path / "absent") is None
  shapes = params_metadata(two_steps, 1)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
    lambda x: (x.shape, x.dtype), params
  )
  # The type asked for, and no sharding: that of the machine that wrote must not matter.
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
  restored = restore_params(two_steps, abstract)
  np.testing.assert_array_equal(restored["wte"], params["wte"])
  assert restored["blocks"]["layer_0"]["kernel"].dtype == jnp.float32
  older = restore_params(two_steps, abstract, step=1)
  np.testing.assert_array_equal(older["wte"], state_of(1)[0]["wte"])
  with pytest.raises(CheckpointError, match=r"no checkpoint 9 in .*\[1, 2\]"):
    restore_params(two_steps, abstract, step=9)
  with pytest.raises(CheckpointError, match="no checkpoint in"):
    restore_params(tmp_path, abstract)


def test_another_model_is_an_error_and_moves_nothing(two_steps):
  params, optimizer = state_of()
  wider = params | {"wte": jnp.zeros((16, 9))}
  deeper = params | {"extra": jnp.zeros(3)}
  other_type = params | {"wte": jnp.zeros((16, 8), jnp.bfloat16)}
  fewer = {"blocks": params["blocks"]}
  other_optimizer = optimizer | {"state": optax.sgd(0.1, momentum=0.9).init(params)}
  before = sorted(two_steps.rglob("*"))
  checkpointer = manager.Checkpointer(two_steps)
  for p, o, message in (
    (wider, optimizer, r"params/wte is \(16, 8\) float32 there, \(16, 9\) float32 here"),
    (deeper, optimizer, r"params/extra is absent there, \(3,\) float32 here"),
    (other_type, optimizer, r"params/wte is \(16, 8\) float32 there, \(16, 8\) bfloat16 here"),
    (fewer, optimizer, r"params/wte is \(16, 8\) float32 there, absent here"),
    (params, other_optimizer, r"optimizer/state/0/trace/.* is absent there"),
  ):
    with pytest.raises(CheckpointError, match=message):
      checkpointer.restore(abstract(p), abstract(o))
  with pytest.raises(CheckpointError, match=r"params/wte is \(16, 8\) there, \(16, 9\)"):
    restore_params(two_steps, abstract(wider))
  checkpointer.close()
  assert sorted(two_steps.rglob("*")) == before


def test_padding_of_the_tables_may_differ(tmp_path):
  """Rows past the vocabulary are cut or filled with zeros, those of the moments with them."""
  rule = optax.adam(0.1)
  params = {"wte": jnp.arange(1.0, 41).reshape(10, 4), "kernel": jnp.ones((10, 4))}
  state = jax.tree.map(lambda x: x + 1, rule.init(params))
  checkpointer = manager.Checkpointer(tmp_path)
  checkpointer.save(1, params=params, optimizer=state, data_state={})
  for rows in (8, 10, 16):
    wanted = params | {"wte": jnp.zeros((rows, 4))}
    restored = checkpointer.restore(abstract(wanted), abstract(rule.init(wanted)), vocab_size=8)
    for table, saved in (
      (restored.params["wte"], params["wte"]),
      (restored.optimizer[0].mu["wte"], state[0].mu["wte"]),
      (restored.optimizer[0].nu["wte"], state[0].nu["wte"]),
      (restore_params(tmp_path, abstract(wanted), vocab_size=8)["wte"], params["wte"]),
    ):
      assert table.shape == (rows, 4)
      np.testing.assert_array_equal(table[:10], saved[:rows])
      assert not table[10:].any()
  for wrong, vocab_size in (
    ({"wte": (16, 4)}, None),
    ({"wte": (7, 4)}, 8),
    ({"kernel": (16, 4)}, 8),
  ):
    other = params | {name: jnp.zeros(shape) for name, shape in wrong.items()}
    with pytest.raises(CheckpointError, match=f"params/{next(iter(wrong))} is"):
      restore_params(tmp_path, abstract(other), vocab_size=vocab_size)
  checkpointer.close()
