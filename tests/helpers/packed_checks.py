"""What every task on packed rows promises, as functions of its examples.

`packed_like_padded` and `nobody_else_matters` take an `ExampleTask`, its spec, its examples and
parameters; they are called by the tests of each task.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from gptneo_jax.config import ModelConfig
from gptneo_jax.examples.packing import Packing
from gptneo_jax.model import heads, packed_outputs
from gptneo_jax.model.parameters import init_params
from gptneo_jax.training import run_config

WINDOW = 8  # shorter than the sequences of a test should be


def small_model(head: str, vocab_size: int, **fields) -> ModelConfig:
  """A GPT-Neo whose local layers see 8 tokens; weights of real spread come from `params_of`."""
  return ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, vocab_size=vocab_size, window_size=WINDOW,
    max_position_embeddings=64, head=head, **{"initializer": "hf", **fields},
  )  # fmt: skip


def params_of(model: ModelConfig):
  """Random, with biases and norms that are not 0 and 1."""
  params = init_params(heads.build(model), jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
  return jax.tree.unflatten(tree, [leaf + one for leaf, one in zip(leaves, noise)])


def loss_of(task, model: ModelConfig, **settings):
  """A function of parameters and a batch: loss and gradients. settings: of the config."""
  config = run_config.base(model).unlock()
  config.update_from_flattened_dict(settings)
  loss = task.make_loss(config.lock(), heads.build(model))

  @jax.jit
  def value_and_grad(params, batch):
    objective = lambda params: loss.share(params, batch, None, loss.weight_sums(batch))[0]
    return jax.value_and_grad(objective)(params)

  return value_and_grad


def outputs_of(model: ModelConfig, params, batch):
  """What the head says of a batch."""
  module = heads.build(model)
  return np.asarray(jax.jit(packed_outputs.of_batch, static_argnums=0)(module, params, batch))


def batch_of(task, spec, examples, seq_len: int, *, packed: bool = True):
  packing = Packing(examples, seq_len, packed=packed)
  return packing.batch(packing.in_order(), task.kind.layout(spec))


def packed_like_padded(task, spec, examples, model: ModelConfig, seq_len=64, **settings) -> None:
  """Packed rows, padded rows and one example at a time: the same loss and gradients."""
  step, params = loss_of(task, model, **settings), params_of(model)
  packed = batch_of(task, spec, examples, seq_len)
  padded = batch_of(task, spec, examples, seq_len, packed=False)
  assert len(packed["inputs"]) < len(padded["inputs"]), "nothing was packed"
  assert max(np.bincount(packed["segment_ids"].ravel())[1:]) > 2 * WINDOW, "all within the window"
  (loss, grads), (other, others) = step(params, packed), step(params, padded)
  np.testing.assert_allclose(loss, other, rtol=1e-6)
  close(grads, others, 1e-6)


def close(grads, others, tolerance: float) -> None:
  """Each array within `tolerance` of the largest gradient of all."""
  largest = max(float(abs(x).max()) for x in jax.tree.leaves(others))
  for name, got in jax.tree_util.tree_leaves_with_path(grads):
    want = others
    for key in name:
      want = want[key.key]
    np.testing.assert_allclose(got, want, atol=tolerance * largest, rtol=0, err_msg=str(name))


def nobody_else_matters(task, spec, examples, model: ModelConfig, seq_len=64, **settings) -> None:
  """Other ids of padding, and of all other examples of its row, change no gradient of one example:
  their own parts of the loss are taken away by their weights."""
  step, params = loss_of(task, model, **settings), params_of(model)
  batch = batch_of(task, spec, examples, seq_len)
  _, grads = step(params, batch)
  junk = dict(batch, inputs=np.where(batch["segment_ids"] > 0, batch["inputs"], 7))
  _, same = step(params, junk)
  close(same, grads, 1e-7)

  first = alone(task, spec, batch)
  _, grads = step(params, first)
  others = (example_of_token(batch) > 1) & (batch["segment_ids"] > 0)
  assert others.any(), "nobody else is there"
  _, same = step(params, dict(first, inputs=np.where(others, 5, first["inputs"])))
  close(same, grads, 1e-7)


def example_of_token(batch):
  """The number of each token's example in its row, from 1; 0 for padding."""
  segments = batch["segment_ids"]
  if "groups" not in batch:
    return segments
  groups = np.pad(batch["groups"], ((0, 0), (1, 0)))  # by the number of the segment
  return np.take_along_axis(groups, segments, axis=1)


def padding_may_stand_anywhere(task, spec, examples, model: ModelConfig, seq_len=64) -> None:
  """Rows of one example with padding on their right, on their left, and on both sides."""
  step, params = loss_of(task, model), params_of(model)
  batch = batch_of(task, spec, examples, seq_len, packed=False)
  loss, grads = step(params, batch)
  free_B = seq_len - (batch["segment_ids"] > 0).sum(1)
  for shift_B in (free_B, free_B // 2):
    moved = {}
    for name, array in batch.items():
      column = task.kind.layout(spec).get(name)
      if column is None or column.of == "token":
        rows = [np.roll(row, shift, axis=0) for row, shift in zip(array, shift_B)]
        moved[name] = np.stack(rows)
      else:
        moved[name] = array + shift_B[:, None] if column.of == "position" else array
    other, others = step(params, moved)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    close(others, grads, 1e-6)


def alone(task, spec, batch):
  """The batch in which nothing but the first example of each row counts."""
  counted = dict(batch)
  for name, column in task.kind.layout(spec).items():
    if column.of == "token" and name == "labels":
      counted[name] = np.where(example_of_token(batch) == 1, batch[name], -100)
    elif name == "weights" and column.of == "token":
      counted[name] = np.where(example_of_token(batch) == 1, batch[name], 0).astype(np.float32)
    elif name == "weights":
      places = np.broadcast_to(np.arange(1, batch[name].shape[1] + 1), batch[name].shape)
      first = batch.get("groups", places) == 1
      counted[name] = np.where(first, batch[name], 0).astype(np.float32)
  return counted


def with_ids(example, ids):
  """The example with other ids in its first sequence."""
  return dataclasses.replace(example, sequences=(np.asarray(ids, np.int32), *example.sequences[1:]))
