"""Memory of a step, worked out before it runs."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from gptneo_jax import hardware, sharding
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import Method
from gptneo_jax.state import abstract_state, init_state
from gptneo_jax.training import fitting, memory_estimate
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer

OPTIMIZER, _ = make_optimizer(OptimizerConfig(), ScheduleConfig(decay_steps=100))


def needs(config: ModelConfig, rows: int, seq_len: int, **options) -> dict[str, int]:
  mesh = sharding.make_mesh()
  state = abstract_state(Decoder(config), OPTIMIZER, mesh)
  options = {"accumulates": False} | options
  return memory_estimate.step_bytes(config, state, mesh, rows=rows, seq_len=seq_len, **options)


def test_weights_and_moments_are_counted_exactly():
  config = PRESETS["neo_125m"]
  parts = needs(config, rows=1, seq_len=256)
  assert parts["parameters"] == parts["gradients"] == 4 * config.num_params()
  moments = parts["optimizer"] - 2 * parts["parameters"]
  assert 0 <= moments < 1000  # and the step count
  parts = needs(config, rows=1, seq_len=256, accumulates=True)
  assert parts["gradient sums"] == parts["gradients"] == 4 * config.num_params()
  assert memory_estimate.certain_bytes(parts) == parts["optimizer"] + 8 * config.num_params()


def test_of_what_is_frozen_there_is_neither_gradient_nor_moment():
  config = PRESETS["neo_125m"].replace(param_dtype="bfloat16", dtype="bfloat16")
  mesh, parts = sharding.make_mesh(), {}
  for base in ("", "int8", "int4"):
    method = Method(LoraConfig(rank=8, base=base))
    state = abstract_state(Decoder(config), OPTIMIZER, mesh, method)
    parts[base] = memory_estimate.step_bytes(
      config, state, mesh, rows=1, seq_len=256, accumulates=True
    )
  learned = 12 * 8 * (4 * 2 * 768 + 2 * 5 * 768)
  kernels = 12 * 12 * 768 * 768
  for base, width in (("", 2), ("int8", 1 + 4 / 768), ("int4", 0.5 + 4 / 64)):
    found = parts[base]
    assert found["gradients"] == found["gradient sums"] == 4 * learned
    assert 0 <= found["optimizer"] - 8 * learned < 1000
    rest = config.num_params() - kernels
    expected = 4 * learned + 2 * rest + width * kernels
    assert found["parameters"] == pytest.approx(expected, rel=0.005)
  assert 0 <= parts[""]["cast weights"] - 2 * learned < 1000  # the factors, and their scales
  assert parts["int8"]["cast weights"] < 2 * learned + 6 * kernels / 12 * 1.01


def test_what_fits_a_t4():
  """16 GB hold 125M in full, 1.3B by LoRA and 2.7B by QLoRA, and none of them by more."""
  there = hardware.CHIPS["t4"].memory_gib * memory_estimate.GIB
  fits = {}
  for name in ("neo_125m", "neo_1p3b", "neo_2p7b"):
    uses = memory_estimate.use_bytes(PRESETS[name], 2048, half=None)
    fits[name] = {use.terms.split(",")[0]: use.bytes < there for use in uses}
  full, by_lora, by_qlora = "AdamW", "LoRA on 16-bit weights", "QLoRA on an 8-bit base"
  assert fits["neo_125m"][full] and not fits["neo_1p3b"][full]
  assert fits["neo_1p3b"][by_lora] and not fits["neo_2p7b"][by_lora]
  assert fits["neo_2p7b"][by_qlora]


def recorded_cells() -> list[tuple[str, dict]]:
  """Configs that TPU's compiler compiled: name and topology, settings and GiB."""
  table = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "plan_table.json"
  cells = json.loads(table.read_text())
  return [(name, cell) for name, cell in cells.items() if cell["fits"]]


@pytest.mark.parametrize(
  ("name", "cell"), recorded_cells(), ids=[name for name, _ in recorded_cells()]
)
def test_the_estimate_is_near_the_compilers_count(name, cell):
  """Neither so low that what is chosen does not compile, nor so high that memory lies idle."""
  model, topology = name.split()
  chip, _, shape = topology.partition(":")
  devices = hardware.num_chips(shape)
  config = importlib.import_module(f"gptneo_jax.configs.{model}").get_config()
  given = dict(setting.split("=") for setting in cell["settings"])
  changes = {key: int(value) if value.isdigit() else value for key, value in given.items()}
  config = fitting.apply(config, changes)
  chosen = {"grad_accumulation": cell["grad_accumulation"], "model.remat": cell["remat"]}
  assert (
    fitting.choose(config, devices, hardware.CHIPS[chip].memory_gib * memory_estimate.GIB) == chosen
  )
  estimated = fitting.estimate(fitting.apply(config, chosen), devices)
  ratio = memory_estimate.total(estimated) / memory_estimate.GIB / cell["needed"]
  low, high = memory_estimate.NEARNESS
  assert low < ratio < high, (ratio, estimated)


def test_needs_are_said_with_their_figures():
  parts = {
    "parameters": 3 * memory_estimate.GIB,
    "logits": 0,
    "activations": 5 * memory_estimate.MIB,
  }
  text = memory_estimate.needs_text(parts, 2 * memory_estimate.GIB, 8)
  assert "about 3.00 GiB on each of 8 device(s)" in text and "there are 2.00 GiB" in text
  assert "(parameters 3.00 GiB, activations 5.0 MiB)" in text


def test_there_is_memory_here():
  assert memory_estimate.available_bytes(jax.local_devices()) > memory_estimate.GIB / 4


def test_what_a_run_counts_on_does_not_depend_on_what_is_free():
  """It decides in how many parts a batch is taken, so a resumed run must find the same."""
  here = jax.local_devices()
  before = memory_estimate.memory_bytes(here)
  taken = np.ones(2**28, np.uint8)
  assert memory_estimate.memory_bytes(here) == before and taken.all()
  assert memory_estimate.memory_bytes(here * 4) == before // 4


def test_a_fresh_state_has_the_shape_that_was_promised():
  config = ModelConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, window_size=4)
  mesh = sharding.make_mesh()
  abstract = abstract_state(Decoder(config), OPTIMIZER, mesh)
  state = init_state(Decoder(config), OPTIMIZER, mesh, seed=0)
  assert jax.tree.structure(state) == jax.tree.structure(abstract)
  for leaf, promised in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (
      promised.shape, promised.dtype, promised.sharding
    )  # fmt: skip
