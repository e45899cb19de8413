"""Turns a config into a run: model, data, optimizer, mesh, shapes, before anything large is made.

`train` and `plan` both call `setup_run`, for the devices that are here or for those of a topology,
so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.data import DataConfig
from gptneo_jax.errors import user_errors
from gptneo_jax.model import heads, lora
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.methods import Method
from gptneo_jax.state import TrainState, abstract_state
from gptneo_jax.steps import Guard
from gptneo_jax.training import (
  fitting,
  memory_estimate,
  multihost,
  muon,
  parse_config,
  rate_factors,
  skipping,
)
from gptneo_jax.training.optimizer import Schedule
from gptneo_jax.training.tasks import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A config, and everything that follows from it on given devices.

  Attributes:
    asked: the config as it was given.
    config: the same with nothing left open: the number of parts of a batch and `model.remat` are
      chosen for the devices (fitting.py).
    task: what it learns.
    method: what of the model learns.
    module: the model, with the head of `model.head`.
    learning_rate: by the number of updates done.
    guard: what decides in a step whether it is skipped; None for none.
    mesh: the devices; where only their number is known an AbstractMesh, good for shapes alone.
    state: the parameters and the optimizer's state as shapes, with shardings.
    streams: the virtual data streams that each host reads, by process index; {} where the devices
      are not known.
    attention: the backend of each kind of layer; {} where the devices are not known.
    memory: bytes of one device that the run counts on.
    prepared: what the task made of its data before the start (`Task.prepare`).
  """

  asked: ConfigDict
  config: ConfigDict
  task: Task
  model_config: ModelConfig
  method: Method
  data_config: DataConfig
  module: Decoder
  optimizer: optax.GradientTransformation
  learning_rate: Schedule
  guard: Guard | None
  mesh: Mesh
  state: TrainState
  streams: dict[int, range]
  attention: dict[str, str]
  memory: float
  prepared: Any = None

  @property
  def own_streams(self) -> range:
    """The streams of this host."""
    return self.streams[jax.process_index()]

  @property
  def shardings(self) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, self.state)

  @property
  def param_shardings(self) -> Any:
    """Of the model, what learns of it and what does not together."""
    shardings = self.shardings
    return lora.combine(shardings.frozen, shardings.params)

  @property
  def choice(self) -> tuple[int, str]:
    """Parts of a batch, and what the backward pass computes again."""
    return self.config.grad_accumulation, self.config.model.remat

  def with_choice(self, changes: fitting.Changes) -> Run:
    """The run with other values for what its config leaves open."""
    config = fitting.apply(self.asked, changes)
    model_config = self.model_config.replace(remat=config.model.remat)
    return dataclasses.replace(
      self, config=config, model_config=model_config, module=heads.build(model_config)
    )

  def num_trainable(self) -> int:
    """Number of parameters that learn."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

  # --- in words -----------------------------------------------------------------------------------

  def describe(self) -> str:
    """The first line of a run: model, devices, memory, the choices, attention."""
    size = memory_estimate.size_text(sharding.bytes_per_device(self.state))
    shape = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
    attention = ", ".join(f"{kind} {backend}" for kind, backend in self.attention.items())
    return (
      f"{self.model_config.num_params():,} parameters{self._what_learns()} on {self.mesh.size}"
      f" {jax.devices()[0].device_kind} device(s), mesh {shape}: {size} of weights and optimizer on"
      f" each; {self.describe_choice()}; attention: {attention}"
    )

  def _what_learns(self) -> str:
    """How many of the parameters learn, and by what method; '' for all."""
    learn = self.num_trainable()
    if self.method.lora is not None:
      return f", {learn:,} trainable: {self.method.lora.describe()};"
    return f", {learn:,} trainable," if self.method.frozen else ""

  def describe_choice(self) -> str:
    """How the batch is taken and what is computed again, marked where the config left it open."""
    parts, remat = self.choice
    rows = self.config.batch_size // (sharding.batch_ways(self.mesh) * parts)
    asked = (self.asked.grad_accumulation, self.asked.model.remat)
    marks = ["" if given == has else " (chosen)" for given, has in zip(asked, self.choice)]
    return (
      f"a batch in {parts} part(s){marks[0]} of {rows} row(s) on a device, remat {remat}{marks[1]}"
    )


def setup_run(
  config: ConfigDict,
  devices: Sequence[jax.Device] | int | None = None,
  memory: float | None = None,
) -> Run:
  """Checks a config and works out what follows from it.

  Args:
    config: as the files in configs/ make it.
    devices: to run on; None: those that are here, of all hosts. A number of devices of which
      nothing else is known.
    memory: bytes of one device; None: what this machine's have, the least of all hosts.

  Raises:
    UserError: for a setting that is wrong, for what does not divide, for an attention backend that
      cannot serve on these devices.
  """
  parsed = parse_config.read(config)
  with user_errors():
    if isinstance(devices, int):
      mesh = cast(Mesh, sharding.abstract_mesh(**config.mesh.to_dict(), num_devices=devices))
    else:
      mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    attention = _attention_backends(config, parsed.model, mesh)
    state = abstract_state(heads.build(parsed.model), parsed.optimizer, mesh, parsed.method)
    rate_factors.check(config.optimizer.rates, state.params)
    muon.check_learned(config.optimizer.name, state.params)
  guard = skipping.guard(parsed.skip)
  if guard is not None:
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(guard.init)
    state = state.replace(
      history=jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
      )
    )
  parse_config.check_batch(config, mesh)
  streams = {}
  if isinstance(mesh, Mesh):
    streams = multihost.streams_by_host(mesh, config.batch_size, parsed.data.num_streams)
  if memory is None:
    memory = min(multihost.gather_objects(memory_estimate.memory_bytes(jax.local_devices())))
  run = Run(
    asked=config,
    config=config,
    task=parsed.task,
    model_config=parsed.model,
    method=parsed.method,
    data_config=parsed.data,
    module=heads.build(parsed.model),
    optimizer=parsed.optimizer,
    learning_rate=parsed.learning_rate,
    guard=guard,
    mesh=mesh,
    state=state,
    streams=streams,
    attention=attention,
    memory=memory,
  )
  return run.with_choice(fitting.choose(config, mesh.size, memory))


def _attention_backends(
  config: ConfigDict, model_config: ModelConfig, mesh: Mesh
) -> dict[str, str]:
  if not isinstance(mesh, Mesh):
    return {}
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return memory_estimate.attention_backends(
      model_config, config.seq_len, segments=config.data.segment_ids
    )
