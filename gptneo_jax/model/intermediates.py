"""What is inside a forward pass: the hidden states and attention probabilities of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from gptneo_jax.config import ModelConfig
from gptneo_jax.model.decoder import Decoder


def hidden_states(model: Decoder, variables: Any, ids_BxT: jax.Array, **options) -> list[jax.Array]:
  """Embeddings, what each block but the last gives, and the last one after the final norm.

  L + 1 arrays B x T x D, as transformers' `hidden_states`; options as in `Decoder.__call__`.
  """
  final_BxTxD, written = model.apply(
    variables, ids_BxT, mutable=["hidden_states"], method=Decoder.__call__, **options
  )
  written = written["hidden_states"]
  layers = _in_order(model.config, written["blocks"], lambda block: block["output"][0])
  return [written["embeddings"][0], *layers[:-1], final_BxTxD]


def attentions(model: Decoder, variables: Any, ids_BxT: jax.Array, **options) -> list[jax.Array]:
  """Probabilities of each layer, L arrays B x H x T x T, whatever backend the model runs on."""
  _, written = model.apply(
    variables, ids_BxT, mutable=["attentions"], method=Decoder.__call__, **options
  )
  blocks = written["attentions"]["blocks"]
  return _in_order(model.config, blocks, lambda block: block["attn"]["probs"][0])


def _in_order(
  config: ModelConfig, blocks: Mapping[str, Any], take: Callable[[Any], jax.Array]
) -> list[jax.Array]:
  """One array of each layer, first to last, out of the stacks of the scan."""
  places = [take(blocks[f"layer_{j}"]) for j in range(config.period)]
  return [places[i % config.period][i // config.period] for i in range(config.num_layers)]
