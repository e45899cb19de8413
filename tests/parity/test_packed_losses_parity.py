"""Packed rows against transformers' own losses of each example alone, without padding.

GPT-Neo's examples reach past its window, which packing elsewhere needs FlashAttention for, and that
has no window.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax.examples import question_answering, token_classification  # noqa: E402
from gptneo_jax.examples.packing import Example, Packing  # noqa: E402
from gptneo_jax.examples.task_file import TaskSpec  # noqa: E402
from gptneo_jax.model import heads, packed_losses  # noqa: E402
from tests.helpers import hf_models  # noqa: E402

pytestmark = pytest.mark.parity

LENGTHS = (40, 23, 17, 9, 30, 2, 1, 21)  # the window is 6
KINDS = {"token_classification": token_classification, "question_answering": question_answering}
SPEC = TaskSpec(task="", max_tokens=48)


def examples_of(head, rng):
  found = []
  for length in LENGTHS:
    ids = rng.integers(0, 61, length).astype(np.int32)
    if head == "token_classification":
      labels = rng.integers(0, 5, length).astype(np.int32)
      labels[rng.random(length) < 0.4] = -100
      labels[-1] = 3
      weights = (labels >= 0).astype(np.float32)
      found.append(Example((ids,), {"labels": (labels,), "weights": (weights,)}))
    else:
      start, end = sorted(rng.integers(0, length, 2))
      values = {"starts": (start,), "ends": (end,), "weights": (1.0,)}
      found.append(Example((ids,), values=values))
  return found


def their_loss(hf, head, examples):
  """The mean over all labels or spans, from each example's own loss, with its gradients."""
  losses, weights = [], []
  for example in examples:
    tensor = lambda x: torch.tensor(np.asarray(x, np.int64)[None])
    inputs = {"input_ids": tensor(example.sequences[0])}
    if head == "token_classification":
      inputs["labels"] = tensor(example.tokens["labels"][0])
      weights.append(example.tokens["weights"][0].sum())
    else:
      inputs["start_positions"] = tensor(example.values["starts"][0])
      inputs["end_positions"] = tensor(example.values["ends"][0])
      weights.append(1.0)
    losses.append(hf(**inputs).loss)
  total = sum(weight * loss for weight, loss in zip(weights, losses)) / sum(weights)
  hf.zero_grad()
  total.backward()
  return total.item(), hf_models.tensors(hf, gradients=True)


def our_loss(config, params, head, batch):
  module = heads.build(config)
  loss = {
    "token_classification": packed_losses.token_labels, "question_answering": packed_losses.spans
  }[head]  # fmt: skip

  @jax.jit
  def both(params, batch):
    def total(params):
      outputs = module.apply(
        {"params": params}, batch["inputs"], method="outputs", positions_BxT=batch["positions"],
        segment_ids_BxT=batch["segment_ids"],
      )  # fmt: skip
      if head == "question_answering":
        outputs = jax.numpy.stack(outputs, axis=-1)
      return loss(outputs, batch, batch["weights"].sum())

    return jax.value_and_grad(total)(params)

  return both(params, batch)


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_packed_rows_have_the_losses_of_the_examples_alone(family, head):
  options = {"num_labels": 5} if head == "token_classification" else {}
  hf = getattr(hf_models, family)(cls=hf_models.CLASSES[family][head], **options)
  config = hf_models.config_of(hf)
  examples = examples_of(head, np.random.default_rng(0))
  packing = Packing(examples, 48, packed=True)
  assert packing.rows < 5
  batch = packing.batch(packing.in_order(), KINDS[head].layout(SPEC))
  theirs, gradients = their_loss(hf, head, examples)
  ours, ours_by_name = our_loss(
    config, hf_models.to_params(hf_models.tensors(hf), config), head, batch
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  theirs_by_name = hf_models.to_params(gradients, config)
  largest = max(abs(x).max() for x in jax.tree.leaves(theirs_by_name))
  for (path, got), (_, want) in zip(
    *map(jax.tree_util.tree_leaves_with_path, (ours_by_name, theirs_by_name)), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * largest, err_msg=str(path))
