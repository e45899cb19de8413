"""What a head says of packed examples, and of which example it was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gptneo_jax.model import next_token
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.model.heads import HeadedDecoder


def of_batch(module: Decoder, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
  """Without dropout: B x E x C where the batch has `pooled`, tokens to read; else B x T x C."""
  hidden_BxTxD = next_token.hidden_states(module, params, batch, None)
  return read(module, params, hidden_BxTxD, batch.get("pooled"), None)


def read(
  module: Decoder,
  params: Any,
  hidden_BxTxD: jax.Array,
  token_BxE: jax.Array | None,
  dropout_key: jax.Array | None,
) -> jax.Array:
  """What the head says of final hidden states, as `HeadedDecoder.read`."""
  return module.apply(
    {"params": params},
    hidden_BxTxD,
    token_BxE,
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
    method=HeadedDecoder.read,
  )


def of_examples(packing: Any, rows: Sequence[np.ndarray], outputs: str) -> list[np.ndarray]:
  """Of each example, in order, what was said of its sequences or tokens ('sequence', 'token').

  packing: an examples.packing.Packing. rows: of each of its rows what `of_batch` gives; further
    rows, of padding, may follow.
  """
  found = []
  for example, place in zip(packing.examples, packing.places()):
    if outputs == "sequence":
      first, number = place.segment, len(example.sequences)
    else:
      first, number = place.start, example.length
    found.append(np.asarray(rows[place.row][first : first + number], np.float32))
  return found
