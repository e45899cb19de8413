"""Optimisers and learning-rate schedules.

`mesh_adam` with `mesh_cosine` is the recipe of the released models (EleutherAI/gpt-neo,
`model_fns.py` and `optimizers.py`); `adamw` is PyTorch's AdamW, and `cosine`, `linear`, `wsd` and
`constant` are the schedules of those names elsewhere, as in transformers; `muon` learns the blocks'
matrices faster than Adam (experiments/README.md); `adafactor` is for when Adam's two moments do not
fit.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptneo_jax.training import muon, rate_factors

OPTIMIZERS = ("mesh_adam", "adamw", "muon", "adafactor")
SCHEDULES = ("mesh_cosine", "mesh_linear", "cosine", "linear", "wsd", "constant")

# Adafactor factors a second moment only where two axes reach this size. optax's 128 would leave
# q, k, v and out of every model with 64-wide heads (125M, 350M) unfactored: a quarter of the
# parameters kept in full.
_MIN_DIM_SIZE_TO_FACTOR = 64

Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Which optimiser, and its constants. Raises ValueError on a value out of range.

  Attributes:
    name: one of OPTIMIZERS.
    learning_rate: peak rate; for `adafactor` relative to the RMS of each tensor.
    b1, b2, eps: Adam's constants. `adafactor` does not use them; with `muon` they are those of what
      is no matrix of a block.
    weight_decay: decoupled; multiplied by the learning rate in all optimisers.
    clip_norm: largest global norm of the gradients; 0 switches clipping off.
    layer_decay: learning rate of a layer over that of the layer above it.
    rates: 'PATTERN=FACTOR,…': factors of the learning rate of the parameters whose path matches.
  """

  name: str = "mesh_adam"
  learning_rate: float = 6e-4
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  layer_decay: float = 1.0
  rates: str = ""

  def __post_init__(self):
    _require(self.name in OPTIMIZERS, "optimizer.name", self.name, f"one of {OPTIMIZERS}")
    _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
    _require(0 <= self.b1 < 1, "optimizer.b1", self.b1, "in [0, 1)")
    _require(0 <= self.b2 < 1, "optimizer.b2", self.b2, "in [0, 1)")
    _require(self.eps > 0, "optimizer.eps", self.eps, "above 0")
    _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
    _require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 (off) or more")
    _require(
      0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "above 0, at most 1"
    )
    rate_factors.parse(self.rates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
  """Shape of the learning rate over optimiser steps. Raises ValueError on a bad value.

  Attributes:
    name: one of SCHEDULES.
    warmup_steps: number of steps over which the rate rises from 0 at step 0.
    decay_steps: the step at which the floor is reached, counted from step 0.
    warmup_ratio: above 0, `warmup_steps` is this share of the steps (`epochs.settle_schedule`).
    cooldown: of `wsd`, the share of `decay_steps` in which the rate falls, the last ones.
    floor: fraction of the peak that is held from `decay_steps` on.
  """

  name: str = "mesh_cosine"
  warmup_steps: int = 3000
  warmup_ratio: float = 0.0
  decay_steps: int
  cooldown: float = 0.2
  floor: float = 0.1

  def __post_init__(self):
    _require(self.name in SCHEDULES, "schedule.name", self.name, f"one of {SCHEDULES}")
    _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
    _require(0 <= self.warmup_ratio < 1, "schedule.warmup_ratio", self.warmup_ratio, "in [0, 1)")
    _require(self.decay_steps > 0, "schedule.decay_steps", self.decay_steps, "above 0")
    _require(0 < self.cooldown <= 1, "schedule.cooldown", self.cooldown, "in (0, 1]")
    _require(0 <= self.floor <= 1, "schedule.floor", self.floor, "in [0, 1]")
    # The original's warm-up and decay overlap; those of the others do not.
    if self.name in ("cosine", "linear", "wsd"):
      _require(
        self.decay_steps > self.warmup_steps,
        "schedule.decay_steps",
        self.decay_steps,
        f"above schedule.warmup_steps ({self.warmup_steps})",
      )
      _require(
        self.decay_begin >= self.warmup_steps,
        "schedule.cooldown",
        self.cooldown,
        f"a share of schedule.decay_steps ({self.decay_steps}) that begins after"
        f" schedule.warmup_steps ({self.warmup_steps})",
      )

  @property
  def decay_begin(self) -> int:
    """The step from which on the rate falls."""
    if self.name == "wsd":
      return self.decay_steps - max(1, round(self.cooldown * self.decay_steps))
    return self.warmup_steps if self.name in ("cosine", "linear") else 0


def _require(holds: bool, field: str, value: Any, expected: str) -> None:
  if not holds:  # NaN fails every comparison, so it ends here too
    raise ValueError(f"{field} is {value!r}; it must be {expected}")


def make_schedule(config: ScheduleConfig, peak: float) -> Schedule:
  """Returns step -> learning rate (float32, shape of `step`); the first update has step 0.

  `mesh_cosine` and `mesh_linear` are the original's: the decay counts from step 0, and during
  warm-up the decayed value is multiplied by step / warmup_steps, so the peak itself is never
  reached.
  """
  warmup, begin, floor = config.warmup_steps, config.decay_begin, config.floor

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - begin) / (config.decay_steps - begin), 0.0, 1.0)
    if config.name == "constant":
      shape = 1.0
    elif config.name in ("cosine", "mesh_cosine"):
      shape = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    else:
      shape = 1.0 - progress
    rate = peak * (floor + (1.0 - floor) * shape)
    return rate * jnp.minimum(step / warmup, 1.0) if warmup else rate * jnp.ones_like(step)

  return schedule


def _names(path: tuple) -> list[str]:
  return [str(getattr(key, "key", getattr(key, "name", key))) for key in path]


def decay_mask(params: Any, optimizer_name: str) -> Any:
  """Returns a tree like `params` of booleans: True where weight decay applies.

  Goes by path, never by rank: the leaves of `blocks` are stacked over layers, so that a bias has
  two axes. `mesh_adam` leaves out what the original leaves out by its own names, `norm` and
  `bias`: its final norm is called `ln_f/g`, `ln_f/b` there and so *is* decayed, like wte and
  wpe. The others leave out every bias and every norm.
  """

  def decayed(path, _):
    names = _names(path)
    if optimizer_name == "mesh_adam":
      if "ln_f" in names:
        return True
      return names[-1] != "bias" and not {"ln_1", "ln_2"} & set(names)
    return names[-1] not in ("bias", "scale")

  return jax.tree_util.tree_map_with_path(decayed, params)


class MeshAdamState(NamedTuple):
  """First and second moments, trees like the parameters."""

  mu: optax.Updates
  nu: optax.Updates


def _scale_by_mesh_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction without bias correction (gpt-neo `AdamWeightDecayOptimizer`)."""

  def init(params):
    mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return MeshAdamState(mu, nu)

  def update(updates, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), MeshAdamState(mu, nu)

  return optax.GradientTransformation(init, update)


def _scale_by_adafactor() -> optax.GradientTransformation:
  """Adafactor's direction (Shazeer and Stern, 2018), layer by layer.

  optax factors the two largest axes and takes one RMS per leaf, for the clipping as for the
  parameter scale. On leaves stacked over layers the first goes wrong only from as many layers as
  the smallest factored axis has entries, but the second ties all layers to one RMS. Mapping over
  the layer axis of `blocks` makes the update that of the unstacked model, whatever the depth:
  kernels factor over (embed, mlp), and q, k, v, out over (embed, head_dim), per head.
  """
  per_tensor = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=_MIN_DIM_SIZE_TO_FACTOR),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  )

  def rule(path):
    if "blocks" not in _names(path):
      return per_tensor
    return optax.GradientTransformation(jax.vmap(per_tensor.init), jax.vmap(per_tensor.update))

  def init(params):
    return jax.tree_util.tree_map_with_path(lambda path, p: rule(path).init(p), params)

  def update(updates, state, params=None):
    both = jax.tree_util.tree_map_with_path(
      lambda path, *leaves: rule(path).update(*leaves), updates, state, params
    )
    directions = jax.tree.map(lambda _, pair: pair[0], updates, both)
    return directions, jax.tree.map(lambda _, pair: pair[1], updates, both)

  return optax.GradientTransformation(init, update)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs `inner` on float32 gradients and parameters, so that its state is float32 as well."""

  def cast(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def update(updates, state, params=None):
    return inner.update(cast(updates), state, cast(params))

  return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


def make_optimizer(
  optimizer: OptimizerConfig, schedule: ScheduleConfig, num_layers: int = 0
) -> tuple[optax.GradientTransformation, Schedule]:
  """Returns the update rule and its schedule (step -> learning rate, for the log).

  The order is the original's: gradients to float32, clip by global norm, direction, plus
  weight_decay * parameter, times -rate. State and updates are float32 whatever the type of the
  parameters; `optax.apply_updates` rounds once, at the end. The moments of both Adams are trees
  like the parameters and take their sharding. The state is a dictionary, which has the same keys
  whether clipping and decay are on or off: a run can resume with either changed.

  num_layers: of the model, for `layer_decay`.
  """
  schedule_fn = make_schedule(schedule, optimizer.learning_rate)
  clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
  if optimizer.name == "mesh_adam":
    direction = _scale_by_mesh_adam(optimizer.b1, optimizer.b2, optimizer.eps)
  elif optimizer.name == "adamw":
    direction = optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)
  elif optimizer.name == "muon":
    direction = muon.scale_by_muon(optimizer.b1, optimizer.b2, optimizer.eps)
  else:
    direction = _scale_by_adafactor()
  # Not optax.adafactor's own argument: that one decays by the bare factor at every step, without
  # the learning rate.
  decay = optax.masked(
    optax.add_decayed_weights(optimizer.weight_decay)
    if optimizer.weight_decay
    else optax.identity(),
    functools.partial(decay_mask, optimizer_name=optimizer.name),
  )
  rate = optax.scale_by_learning_rate(schedule_fn)
  if optimizer.rates or optimizer.layer_decay != 1:
    rate = rate_factors.with_factors(
      rate, rates=optimizer.rates, layer_decay=optimizer.layer_decay, num_layers=num_layers
    )
  chain = optax.named_chain(
    ("clip", clip),
    (optimizer.name, direction),
    ("decay", decay),
    ("learning_rate", rate),
  )
  return _in_float32(chain), schedule_fn
