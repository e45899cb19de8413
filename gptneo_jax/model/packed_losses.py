"""Losses of packed rows, whose examples share a row and not a softmax: weighted sums, in float32.

Each is its batch's share of the mean over a larger one, whose weights sum to `weight_sum`: the
weighted mean, if that is the batch's own. On one example that fills its row they are the losses of
`heads.loss`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gptneo_jax.attention.mask import MASKED

Batch = Mapping[str, jax.Array]


def token_labels(
  outputs_BxTxC: jax.Array, batch: Batch, weight_sum: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
  """Cross-entropy of the label of each token.

  batch: `labels`, int B x T, and `weights`, float32 B x T: 0 where no label counts.
  smoothing: the share of each label that all labels get alike.
  """
  weights_BxT = batch["weights"]
  labels_BxT = jnp.where(weights_BxT > 0, batch["labels"], 0)
  log_p_BxTxC = jax.nn.log_softmax(outputs_BxTxC.astype(jnp.float32))
  nll_BxT = -jnp.take_along_axis(log_p_BxTxC, labels_BxT[..., None], axis=-1)[..., 0]
  if smoothing:
    nll_BxT = (1 - smoothing) * nll_BxT - smoothing * log_p_BxTxC.mean(-1)
  return (nll_BxT * (weights_BxT / weight_sum)).sum()


def spans(outputs_BxTx2: jax.Array, batch: Batch, weight_sum: jax.Array) -> jax.Array:
  """Half the sum of the cross-entropies of a span's first and last token, of each sequence.

  batch: `segment_ids` B x T, sequence e of a row having e + 1; `starts` and `ends`, int B x E,
    places in the row; `weights`, float32 B x E, 0 where there is no sequence. The softmax is over
    the tokens of the sequence.
  """
  E = batch["starts"].shape[1]
  own_BxExT = batch["segment_ids"][:, None] == jnp.arange(1, E + 1)[None, :, None]
  nll_BxE = jnp.zeros(batch["starts"].shape, jnp.float32)
  for side, at_BxE in enumerate((batch["starts"], batch["ends"])):
    logits_BxT = outputs_BxTx2[..., side].astype(jnp.float32)
    log_z_BxE = jax.nn.logsumexp(jnp.where(own_BxExT, logits_BxT[:, None], MASKED), axis=-1)
    nll_BxE += (log_z_BxE - jnp.take_along_axis(logits_BxT, at_BxE, axis=1)) / 2
  weights_BxE = batch["weights"] / weight_sum
  return (jnp.where(weights_BxE > 0, nll_BxE, 0) * weights_BxE).sum()
