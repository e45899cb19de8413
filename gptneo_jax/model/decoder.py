"""The decoder: GPT-Neo, and GPT-2, which is the same with another attention pattern and scale.

Layers are scanned over one period of the attention pattern, (global, local) for GPT-Neo, so the
time to compile does not grow with depth. Parameters, float32 unless `param_dtype` says otherwise:

  wte (V, D) · wpe (P, D) · ln_f/{scale,bias} (D) · lm_head (V, D) if untied · head/… (heads.py)
  blocks/layer_J/… with a leading axis of L / period, J the place in the period:
    ln_1, ln_2/{scale,bias} (D)
    attn/{q,k,v}/kernel (D, H, K), and bias (H, K) in GPT-2 · attn/out/kernel (H, K, D), bias (D)
    mlp/c_fc/kernel (D, F), bias (F) · mlp/c_proj/kernel (F, D), bias (D)

Beside a kernel of the blocks there may be low-rank factors, `lora_a`, `lora_b` and `lora_scale`
(lora.py), and the kernel may be quantized (quantized_kernel.py): both are read where they are
passed, and never made here. Other collections, each of the same layout, `hidden_states` and
`attentions`, are written where asked for (intermediates.py).

Letters as in axes.py. Sources: EleutherAI/gpt-neo (models/gpt2/gpt2.py), transformers'
modeling_gpt_neo.py and modeling_gpt2.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptneo_jax import axes
from gptneo_jax.attention import Dropout, MaskSpec, attend, probabilities, residuals_saveable
from gptneo_jax.config import ModelConfig
from gptneo_jax.model.activations import activate
from gptneo_jax.model.losses import mask_padding
from gptneo_jax.model.matmul import add_bias, matmul
from gptneo_jax.sharding import constrain, partition

_HEADS_AXES = (axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)  # of q, k and v

# What the backward pass may keep of a block's forward pass instead of computing it again.
_policies = jax.checkpoint_policies
REMAT_POLICIES: dict[str, Callable | None] = {
  "full": None,  # the block's input only
  # What costs most: results of weight matrices and of attention. The rest is computed again.
  "dots": _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable,
    residuals_saveable,
  ),
}


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
  """Normalises the last axis; statistics in float32, result in the type of x."""
  x32 = x.astype(jnp.float32)
  mean = x32.mean(axis=-1, keepdims=True)
  variance = jnp.square(x32 - mean).mean(axis=-1, keepdims=True)
  scale, bias = (jnp.expand_dims(p, range(x.ndim - 1)) for p in (scale, bias))
  return ((x32 - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


def init_stddev(config: ModelConfig, name: str) -> float:
  """Standard deviation that the weights called `name` start with (biases start at 0).

  'mesh_tf' is the original's: the attention scale sits in q, so that attention logits of normalised
  inputs start with deviation 1; c_proj is scaled by depth, out is not. 'hf' is transformers': one
  deviation for everything, which from GPT-Neo 1.3B on starts with near one-hot attention; GPT-2's
  out and c_proj are scaled by depth.
  """
  D, L = config.hidden_size, config.num_layers
  if config.initializer == "hf":
    residual = config.model_type == "gpt2" and name in ("out", "c_proj")
    return config.initializer_range / (math.sqrt(2 * L) if residual else 1.0)
  return {
    "wte": 0.02,
    "wpe": 0.01,
    "lm_head": 0.02,
    "q": D**-0.5 * config.head_dim**-0.5 / config.attention_scale,
    "k": D**-0.5,
    "v": D**-0.5,
    "out": D**-0.5,
    "c_fc": 0.02,
    "c_proj": 0.02 / math.sqrt(L),
    "head": 0.02,
  }[name]


class _Module(nn.Module):
  """A module of the decoder: makes parameters by name, with logical axes and initial scale."""

  config: ModelConfig

  if TYPE_CHECKING:
    # flax declares Any | tuple, which no caller can index: `mutable` decides which it is.
    def apply(self, *args: Any, **kwargs: Any) -> Any: ...

  def weight(
    self, name: str, rule: str, shape: tuple[int, ...], names: tuple[str, ...]
  ) -> jax.Array:
    init = nn.initializers.normal(init_stddev(self.config, rule))
    return self._param(name, init, shape, names)

  def constant(
    self, name: str, value: float, shape: tuple[int, ...], names: tuple[str, ...]
  ) -> jax.Array:
    return self._param(name, nn.initializers.constant(value), shape, names)

  def _param(
    self, name: str, init: Callable, shape: tuple[int, ...], names: tuple[str, ...]
  ) -> jax.Array:
    dtype = jnp.dtype(self.config.param_dtype)
    boxed_init = nn.with_logical_partitioning(init, names)
    return cast(jax.Array, self.param(name, boxed_init, shape, dtype))  # taken out of its box

  def asked_for(self, collection: str) -> bool:
    """Whether this call is to write into `collection`: what nobody reads is not computed."""
    return self.is_mutable_collection(collection) and not self.is_initializing()

  @property
  def dtype(self) -> jnp.dtype:
    return jnp.dtype(self.config.dtype)


class LayerNorm(_Module):
  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    D = self.config.hidden_size
    scale = self.constant("scale", 1.0, (D,), (axes.NORM,))
    bias = self.constant("bias", 0.0, (D,), (axes.NORM,))
    return layer_norm(x_BxTxD, scale, bias, self.config.layer_norm_epsilon)


class Dense(_Module):
  """A dense layer: contracts the last axes of x with the first of the kernel, and adds the bias.

  Where there are low-rank factors beside the kernel, a (…in, r) and b (r, …out), scale · x·a·b is
  added, x after a dropout of its own.
  """

  rule: str = ""
  in_shape: tuple[int, ...] = ()
  out_shape: tuple[int, ...] = ()
  in_axes: tuple[str, ...] = ()
  out_axes: tuple[str, ...] = ()
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    y = self._product(x)
    if self.has_variable("params", "lora_a"):
      a, b, scale = (self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
      read = nn.Dropout(self.config.lora_dropout, deterministic=deterministic)(x)
      y += scale.astype(y.dtype) * matmul(matmul(read, a, len(self.in_shape)), b)
    if self.use_bias:
      y = add_bias(y, self.constant("bias", 0.0, self.out_shape, self.out_axes))
    return y

  def _product(self, x: jax.Array) -> jax.Array:
    if self.has_variable("params", "kernel"):
      kernel = self.get_variable("params", "kernel")
      if not isinstance(kernel, jax.Array):
        from gptneo_jax.model import quantized_kernel  # qwix takes a second to import

        return quantized_kernel.matmul(x, kernel, len(self.in_shape))
    shape, names = self.in_shape + self.out_shape, self.in_axes + self.out_axes
    return matmul(x, self.weight("kernel", self.rule, shape, names), len(self.in_shape))


class Attention(_Module):
  kind: str = "global"

  @nn.compact
  def __call__(
    self,
    x_BxTxD: jax.Array,
    segment_ids_BxT: jax.Array | None,
    deterministic: bool,
    layer: jax.Array | None,
  ) -> jax.Array:
    config = self.config
    D, H, K = (config.hidden_size,), (config.num_heads,), (config.head_dim,)
    heads = functools.partial(
      Dense, config, in_shape=D, in_axes=(axes.EMBED,), out_shape=H + K,
      out_axes=(axes.HEADS, axes.HEAD_DIM), use_bias=config.qkv_bias,
    )  # fmt: skip
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = (
      constrain(heads(rule=name, name=name)(x_BxTxD, deterministic), *_HEADS_AXES)
      for name in ("q", "k", "v")
    )
    if layer is not None:  # in q, for the scale of a kernel cannot differ from layer to layer
      q_BxTxHxK = (q_BxTxHxK / (layer + 1.0)).astype(self.dtype)
    dropout = None
    if config.attention_dropout and not deterministic:
      dropout = Dropout(config.attention_dropout, self.make_rng("dropout"))
    spec = MaskSpec(config.window_size if self.kind == "local" else None, segment_ids_BxT)
    if self.asked_for("attentions"):
      probs_BxHxTxT = probabilities(q_BxTxHxK, k_BxTxHxK, spec, config.attention_scale)
      self.sow("attentions", "probs", probs_BxHxTxT.astype(self.dtype))
    y_BxTxHxK = attend(
      q_BxTxHxK,
      k_BxTxHxK,
      v_BxTxHxK,
      spec,
      scale=config.attention_scale,
      impl=config.attention_impl,
      dropout=dropout,
      partition=partition(*_HEADS_AXES),
    )
    return Dense(
      config, rule="out", in_shape=H + K, in_axes=(axes.HEADS, axes.HEAD_DIM), out_shape=D,
      out_axes=(axes.EMBED,), name="out",
    )(y_BxTxHxK, deterministic)  # fmt: skip


class MLP(_Module):
  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, deterministic: bool) -> jax.Array:
    config = self.config
    D, F = (config.hidden_size,), (config.mlp_size,)
    h_BxTxF = Dense(
      config, rule="c_fc", in_shape=D, in_axes=(axes.EMBED,), out_shape=F, out_axes=(axes.MLP,),
      name="c_fc",
    )(x_BxTxD, deterministic)  # fmt: skip
    h_BxTxF = constrain(h_BxTxF, axes.BATCH, axes.LENGTH, axes.ACT_MLP)
    return Dense(
      config, rule="c_proj", in_shape=F, in_axes=(axes.MLP,), out_shape=D, out_axes=(axes.EMBED,),
      name="c_proj",
    )(activate(h_BxTxF, config.activation_function), deterministic)  # fmt: skip


class Block(_Module):
  kind: str = "global"

  @nn.compact
  def __call__(
    self,
    x_BxTxD: jax.Array,
    segment_ids_BxT: jax.Array | None,
    deterministic: bool,
    layer: jax.Array | None,
  ) -> jax.Array:
    drop = nn.Dropout(self.config.resid_dropout, deterministic=deterministic)
    attention = Attention(self.config, kind=self.kind, name="attn")
    h_BxTxD = LayerNorm(self.config, name="ln_1")(x_BxTxD)
    x_BxTxD += drop(attention(h_BxTxD, segment_ids_BxT, deterministic, layer))
    h_BxTxD = LayerNorm(self.config, name="ln_2")(x_BxTxD)
    x_BxTxD += drop(MLP(self.config, name="mlp")(h_BxTxD, deterministic))
    if self.asked_for("hidden_states"):
      self.sow("hidden_states", "output", x_BxTxD)
    return constrain(x_BxTxD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)


class Period(_Module):
  """One period of the attention pattern: the body of the scan over layers.

  first: number of its first layer; None where no layer needs to know its number.
  """

  @nn.compact
  def __call__(
    self,
    x_BxTxD: jax.Array,
    segment_ids_BxT: jax.Array | None,
    deterministic: bool,
    first: jax.Array | None,
  ) -> tuple[jax.Array, None]:
    block = Block
    if self.config.remat != "none":
      policy = REMAT_POLICIES[self.config.remat]
      # The scan already keeps XLA from merging the recomputation with the forward pass.
      block = nn.remat(Block, policy=policy, prevent_cse=False, static_argnums=(3,))
    for j, kind in enumerate(self.config.attention_pattern):
      layer = block(self.config, kind=kind, name=f"layer_{j}")
      number = None if first is None else first + j
      x_BxTxD = layer(x_BxTxD, segment_ids_BxT, deterministic, number)
    return x_BxTxD, None


class Decoder(_Module):
  """Token ids to final hidden states; `unembed` takes these to logits."""

  def setup(self):
    config = self.config
    V, D, P = config.padded_vocab_size, config.hidden_size, config.max_position_embeddings
    self.wte = self.weight("wte", "wte", (V, D), (axes.VOCAB, axes.EMBED))
    self.wpe = self.weight("wpe", "wpe", (P, D), (axes.POSITION, axes.EMBED))
    if config.untied_lm_head:
      self.lm_head = self.weight("lm_head", "lm_head", (V, D), (axes.VOCAB, axes.EMBED))
    self.embed_dropout = nn.Dropout(config.embed_dropout)
    scan = nn.scan(
      Period,
      variable_axes=dict.fromkeys(("params", "hidden_states", "attentions"), 0),
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, nn.broadcast, 0),
      length=config.num_layers // config.period,
      metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    self.blocks = scan(config)
    self.ln_f = LayerNorm(config)

  def __call__(
    self,
    ids_BxT: jax.Array,
    *,
    positions_BxT: jax.Array | None = None,
    segment_ids_BxT: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Hidden states after the final norm, B x T x D in the compute type.

    positions_BxT: default 0, 1, …, never reset at document boundaries (as the original).
    segment_ids_BxT: attention stays within equal ids; padding is a segment of its own.
    deterministic: False turns dropout and noise on and needs the rng 'dropout'.
    Raises ValueError for more tokens than there are positions, unless positions_BxT are given.
    """
    T = ids_BxT.shape[1]
    if T > self.config.max_position_embeddings and positions_BxT is None:
      raise ValueError(
        f"{T} tokens, and the model has {self.config.max_position_embeddings} positions"
      )
    # Every device has all of a row before the look-up: else XLA copies all activations to reshard.
    wte_VxD = constrain(self.wte, axes.VOCAB, None)
    x_BxTxD = jnp.take(wte_VxD, ids_BxT, axis=0).astype(self.dtype)
    if self.config.neftune_alpha and not deterministic:
      x_BxTxD += self._noise(x_BxTxD, segment_ids_BxT)
    positions = self.wpe[None, :T]
    if positions_BxT is not None:  # rows of several sequences may be longer than the table
      positions = jnp.take(self.wpe, positions_BxT, axis=0)  # NaN past the table: never silent
    x_BxTxD = x_BxTxD + positions.astype(self.dtype)
    x_BxTxD = constrain(x_BxTxD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    x_BxTxD = self.embed_dropout(x_BxTxD, deterministic=deterministic)
    if self.asked_for("hidden_states"):
      self.sow("hidden_states", "embeddings", x_BxTxD)
    first_R = None  # R repeats of the pattern
    if self.config.scale_attn_by_inverse_layer_idx:
      first_R = jnp.arange(0, self.config.num_layers, self.config.period, dtype=jnp.float32)
    x_BxTxD, _ = self.blocks(x_BxTxD, segment_ids_BxT, deterministic, first_R)
    return self.ln_f(x_BxTxD)

  def _noise(self, x_BxTxD: jax.Array, segment_ids_BxT: jax.Array | None) -> jax.Array:
    """NEFTune's (arXiv:2310.05914): uniform, of alpha / sqrt(L · D), L the tokens of a segment."""
    B, T, D = x_BxTxD.shape
    tokens_BxT = jnp.full((B, T), T)
    if segment_ids_BxT is not None:
      tokens_BxT = (segment_ids_BxT[:, :, None] == segment_ids_BxT[:, None, :]).sum(-1)
    size_BxT = self.config.neftune_alpha * jax.lax.rsqrt(tokens_BxT * float(D))
    noise_BxTxD = jax.random.uniform(self.make_rng("dropout"), (B, T, D), jnp.float32, -1.0, 1.0)
    return (size_BxT[..., None] * noise_BxTxD).astype(x_BxTxD.dtype)

  def unembed(self, x_BxTxD: jax.Array) -> jax.Array:
    """Logits, float32 B x T x V with V the padded vocabulary; padded ids get no probability."""
    config = self.config
    table_VxD = self.lm_head if config.untied_lm_head else self.wte
    logits_BxTxV = jnp.einsum(
      "BTD,VD->BTV", x_BxTxD, table_VxD.astype(self.dtype), preferred_element_type=jnp.float32
    )
    logits_BxTxV = constrain(logits_BxTxV, axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)
    if config.padded_vocab_size == config.vocab_size:
      return logits_BxTxV
    return mask_padding(logits_BxTxV, config.vocab_size)

  def logits(self, ids_BxT: jax.Array, **options) -> jax.Array:
    """Logits of a forward pass, float32 B x T x V; options as in `__call__`.

    Raises ValueError where the config's head is another: that one is `HeadedDecoder.outputs`.
    """
    if not self.config.has_lm_head:
      raise ValueError(
        f"the model's head is {self.config.head!r}, and these would be next-token logits:"
        " heads.build(config).apply({'params': params}, ids, method='outputs') gives what it says"
      )
    return self.unembed(self(ids_BxT, **options))


def output_table(config: ModelConfig, params: Mapping[str, Any]) -> jax.Array:
  """The table that takes hidden states to logits, padded V x D."""
  return params["lm_head" if config.untied_lm_head else "wte"]
