"""The peer of the benchmarks: transformers' eager GPT-Neo in PyTorch, on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import transformers

from gptneo_jax.config import ModelConfig

# On a CPU, eager attention is tens of times slower once probabilities become denormal: not its due.
torch.set_flush_denormal(True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gpt_neo(config: ModelConfig) -> transformers.GPTNeoForCausalLM:
  """A model of this size with random weights, float32 or bfloat16 as `config.dtype` says."""
  hf = transformers.GPTNeoConfig(
    vocab_size=config.vocab_size,
    max_position_embeddings=config.max_position_embeddings,
    hidden_size=config.hidden_size,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    attention_types=[[["global", "local"], config.num_layers // 2]],
    window_size=config.window_size,
    attn_implementation="eager",  # the only one that keeps the window
    use_cache=False,
  )
  with torch.device(DEVICE):
    return transformers.GPTNeoForCausalLM(hf).to(getattr(torch, config.dtype))


def forward(config: ModelConfig, ids_BxT: np.ndarray) -> Callable[[], torch.Tensor]:
  """Logits of a batch."""
  model, ids = gpt_neo(config).eval(), torch.tensor(ids_BxT, device=DEVICE).long()

  def call():
    with torch.no_grad():
      return model(ids).logits

  return call


def train_step(config: ModelConfig, ids_BxT: np.ndarray) -> Callable[[], float]:
  """Forward, backward, clipping and AdamW on one batch; float32 weights, autocast for bfloat16.

  Attribute `rows` of what is returned: how many fit at once, B, or half, or half of that; a call
  takes these alone.
  """
  model = gpt_neo(config.replace(dtype="float32"))
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=DEVICE == "cuda"
  )
  half = config.dtype == "bfloat16"

  def step(ids):
    optimizer.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
      loss = model(ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  def call():
    return step(ids)

  call.rows = len(ids_BxT)
  while True:
    ids = torch.tensor(ids_BxT[: call.rows], device=DEVICE).long()
    try:
      call()  # the second one has the optimizer's moments too
      call()
      return call
    except torch.OutOfMemoryError:
      if call.rows == 1:
        raise
      call.rows //= 2
    optimizer.zero_grad()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
