"""Splash attention beyond the shared suite: many blocks, and what a TPU is handed.

Values come from the kernel's program run in XLA; the program for the TPU is only read.
"""

import collections
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from gptneo_jax import attention
from gptneo_jax.attention import splash
from gptneo_jax.config import ModelConfig
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.sharding import MESH_AXES
from gptneo_jax.state import abstract_state
from gptneo_jax.steps import make_train_step
from gptneo_jax.training.tasks.lm import next_token_loss
from tests.helpers.attention_truth import SUBJECTS, check, left_padded, packed

SPLASH = next(subject for subject in SUBJECTS if subject.name == "splash")


@pytest.mark.parametrize(
  "T, window, segments, blocks, fused",
  [
    (700, None, packed(700, [100, 400, 200]), 3, True),
    (1100, None, None, 5, False),
    (1100, 200, left_padded(1100, [0, 300]), 5, False),
    (520, 129, None, 5, False),
  ],
)
def test_many_blocks(T, window, segments, blocks, fused):
  """Both backward kernels; windows that begin in another block than they end."""
  block = splash._block(T, window is not None)
  assert -(-T // block) == blocks
  assert splash._block_sizes(blocks, block, window is not None).use_fused_bwd_kernel == fused
  check(SPLASH, T, window, segments, H=1, K=8)


@pytest.mark.parametrize(
  "T, windowed, block",
  [(1, False, 128), (130, True, 128), (512, False, 512), (1000, False, 1024), (1025, False, 256),
   (2048, False, 1024), (2048, True, 512), (8192, False, 1024), (300, True, 128)],
)  # fmt: skip
def test_blocks_are_large_and_pad_little(T, windowed, block):
  assert splash._block(T, windowed) == block


# --- the training step, for a TPU that is only described ------------------------------------------

NEO = ModelConfig(vocab_size=512, hidden_size=256, num_layers=4, num_heads=4, dtype="bfloat16")


def train_step_kernels(config, mesh_sizes=(2, 2, 2)):
  """How often each kernel occurs in a layer of the training step, by name; and the program."""
  device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh(mesh_sizes, MESH_AXES, abstract_device=device)
  model, optimizer = Decoder(config), optax.adam(1e-3)
  ids_BxT = jax.ShapeDtypeStruct((8, 2048), jnp.int32)
  batch = {"inputs": ids_BxT, "targets": ids_BxT, "segment_ids": ids_BxT}
  with jax.sharding.use_abstract_mesh(mesh):
    state = abstract_state(model, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(next_token_loss(model, 0.0), optimizer, shardings, mesh)
    text = step.trace(state, batch).lower(lowering_platforms=("tpu",)).as_text()
  return collections.Counter(re.findall(r'kernel_name = "(\w+)"', text)), text


@pytest.mark.parametrize("remat, forward", [("none", 1), ("dots", 1), ("full", 2)])
def test_the_training_step_runs_on_kernels(remat, forward):
  splash._kernel.cache_clear()
  kernels, text = train_step_kernels(NEO.replace(remat=remat))
  # Global layers take the fused backward kernel, local ones the two that follow the window.
  assert kernels == {
    "splash_mha_fwd_segmented_residuals": 2 * forward,
    "splash_mha_dkv_segmented_no_residuals": 2,
    "splash_mha_dq_segmented_no_residuals": 1,
  }
  assert "2048x2048" not in text
  assert re.search(r"tensor<2x2x2048x64xbf16>", text)  # 8 rows over 4, 4 heads over 2
  # Which blocks to visit is worked out once for each kind of layer, not once for each time it is
  # traced; making parameters takes one token, of which both kinds are the same.
  assert splash._kernel.cache_info().misses == 3


def test_asked_for_by_name():
  kernels, _ = train_step_kernels(NEO.replace(attention_impl="splash", num_layers=2))
  assert kernels.total() == 5
  kernels, _ = train_step_kernels(NEO.replace(attention_impl="xla", num_layers=2))
  assert kernels.total() == 0
  with pytest.raises(ValueError, match="'cudnn' cannot serve here: it runs on NVIDIA GPUs"):
    train_step_kernels(NEO.replace(attention_impl="cudnn"))
  assert attention.RESIDUALS  # what a policy keeps "dots" by
