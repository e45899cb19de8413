"""Heads on the decoder, with the pooling, padding and losses of transformers' classes.

A headed model has the decoder's parameters and `head/kernel` (D, C), `head/bias` (C) (none for
sequence classification). Sources: transformers' modeling_gpt_neo.py and modeling_gpt2.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import axes
from gptneo_jax.config import ModelConfig
from gptneo_jax.model import losses
from gptneo_jax.model.decoder import Decoder, Dense


class HeadedDecoder(Decoder):
  """The decoder with the head that `config.head` names. `__call__` gives hidden states still."""

  def setup(self):
    super().setup()
    config = self.config
    self.head = Dense(
      config, rule="head", in_shape=(config.hidden_size,), in_axes=(axes.EMBED,),
      out_shape=(config.head_size,), out_axes=(axes.LABELS,), use_bias=config.head_bias,
    )  # fmt: skip
    rates = {
      "token_classification": config.classifier_dropout,
      "double_heads": config.summary_first_dropout,
    }
    self.head_dropout = nn.Dropout(rates.get(config.head, 0.0))

  def __call__(self, ids_BxT: jax.Array, **options) -> jax.Array:
    hidden_BxTxD = super().__call__(ids_BxT, **options)
    if self.is_initializing():
      self.head(hidden_BxTxD)  # makes its parameters
    return hidden_BxTxD

  def outputs(
    self,
    ids_BxT: jax.Array,
    *,
    token_B: jax.Array | None = None,
    deterministic: bool = True,
    **options,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """What the head says, float32; other options as in `Decoder.__call__`.

    sequence_classification: B x C, read at token_B.
    token_classification: B x T x C.
    question_answering: the pair (start, end), each B x T.
    double_heads: next-token logits B x T x V and the choice's score B, read at token_B
      (`mc_token_ids` of transformers, whose B x N rows of choices are B · N rows here).
    token_B: the position of each row that is read. Default for sequence classification: the last
      token that is not `pad_token_id` (`last_tokens`); for double_heads: the last position.
    """
    hidden_BxTxD = self(ids_BxT, deterministic=deterministic, **options)
    if token_B is None:
      if self.config.head == "sequence_classification":
        token_B = last_tokens(ids_BxT, self.config.pad_token_id)
      else:
        token_B = jnp.full(ids_BxT.shape[0], ids_BxT.shape[1] - 1)
    read = self.read(hidden_BxTxD, token_B[:, None], deterministic=deterministic)
    if self.config.head == "sequence_classification":
      return read[:, 0]
    if self.config.head == "double_heads":
      return self.unembed(hidden_BxTxD), read[:, 0, 0]
    if self.config.head == "question_answering":
      return read[..., 0], read[..., 1]
    return read

  def read(
    self, hidden_BxTxD: jax.Array, token_BxE: jax.Array | None, *, deterministic: bool = True
  ) -> jax.Array:
    """What the head says of hidden states, float32.

    Of each token, B x T x C, where the head labels tokens or spans; else of the tokens at
    token_BxE, B x E x C.
    """
    if self.config.head in ("sequence_classification", "double_heads"):
      assert token_BxE is not None
      hidden_BxTxD = jnp.take_along_axis(hidden_BxTxD, token_BxE[..., None], axis=1)
    hidden_BxTxD = self.head_dropout(hidden_BxTxD, deterministic=deterministic)
    return self.head(hidden_BxTxD).astype(jnp.float32)


def build(config: ModelConfig) -> Decoder:
  """The module for a config, with its head if it has one."""
  return Decoder(config) if config.head == "lm" else HeadedDecoder(config)


def last_tokens(ids_BxT: Any, pad_token_id: int) -> Any:
  """Position of each row's last token that is not padding, int B; 0 if all are.

  Padding is known by its id, not by a mask: with padding and end of text of one id, an end of text
  at the end of a row is passed over. Without a padding id (-1) it is the last position, and more
  than one row raises ValueError. NumPy arrays give NumPy arrays.
  """
  xp = np if isinstance(ids_BxT, np.ndarray) else jnp
  B, T = ids_BxT.shape
  if pad_token_id < 0:
    if B > 1:
      raise ValueError(f"{B} rows, and the model has no padding token: set model.pad_token_id")
    return xp.full(B, T - 1)
  return (xp.arange(T)[None] * (ids_BxT != pad_token_id)).argmax(-1)


def loss(config: ModelConfig, outputs: Any, labels: Any) -> Any:
  """Loss of a head's outputs, float32; labels as transformers takes them.

  lm: ids B x T, shifted here; token_classification: int B x T. Both: -100 does not count.
  sequence_classification: by `config.problem_type`; if that is '', one label is a regression, int
    labels B are classes and float labels B x C are several labels at once.
  question_answering: the pair (start, end) of positions, each int B.
  double_heads, with N choices a question: the pair (ids B·N x T, int B), and a pair of losses.
  """
  if config.head == "lm":
    return losses.next_token_cross_entropy(outputs, labels)
  if config.head == "token_classification":
    return losses.cross_entropy(outputs, labels)
  if config.head == "question_answering":
    return losses.span_cross_entropy(*outputs, *labels)
  if config.head == "double_heads":
    (logits_BxTxV, scores_B), (ids_BxT, choices) = outputs, labels
    return (
      losses.next_token_cross_entropy(logits_BxTxV, ids_BxT),
      losses.cross_entropy(scores_B.reshape(choices.shape[0], -1), choices),
    )
  problem = config.problem_type
  if not problem:
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    problem = "single_label_classification" if integers else "multi_label_classification"
    problem = "regression" if config.num_labels == 1 else problem
  if problem == "regression":
    return losses.mean_squared_error(outputs, labels.reshape(outputs.shape))
  if problem == "single_label_classification":
    return losses.cross_entropy(outputs, labels.reshape(outputs.shape[:1]))
  return losses.binary_cross_entropy(outputs, labels)
