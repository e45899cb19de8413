"""GPT-Neo and GPT-2 in float64 from their definitions: the referee between us and PyTorch.

Reads PyTorch's tensors under PyTorch's names, loops over the layers, masks T by T, and shares
nothing with either implementation. Written for NumPy; on PyTorch's float64 tensors (`xp=torch`) it
gives gradients, without a compiler.
"""

import math

import numpy as np


def _layer_norm(x, weight, bias, epsilon, xp):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / xp.sqrt(variance + epsilon) * weight + bias


def _gelu_new(x, xp):
  return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu(x, xp):
  y = x / math.sqrt(2)
  return 0.5 * x * (1 + (np.vectorize(math.erf)(y) if xp is np else xp.erf(y)))


_ACTIVATIONS = {
  "gelu_new": _gelu_new,
  "gelu_fast": _gelu_new,
  "gelu": _gelu,
  "quick_gelu": lambda x, xp: x / (1 + xp.exp(-1.702 * x)),
  "relu": lambda x, xp: x * (x > 0),
  "swish": lambda x, xp: x / (1 + xp.exp(-x)),
}


def _visible_BxTxT(kind, window, real_BxT):
  """Key j of query i: not later, real, and in a local layer fewer than `window` before it."""
  visible_BxTxT = np.zeros((*real_BxT.shape, real_BxT.shape[1]), bool)
  for b, i in np.ndindex(*real_BxT.shape):
    for j in range(i + 1):
      near = kind == "global" or i - j < window
      visible_BxTxT[b, i, j] = near and (real_BxT[b, j] or i == j)
  return visible_BxTxT


def hidden(state, config, ids_BxT, real_BxT=None, positions_BxT=None, xp=np):
  """What the final norm gives, B x T x D.

  state: PyTorch's tensors by name, float64. config: the Hugging Face config.
  real_BxT: which positions are not padding. positions_BxT: default 0, 1, …
  """
  neo = config.model_type == "gpt_neo"
  B, T = ids_BxT.shape
  real_BxT = np.ones((B, T), bool) if real_BxT is None else real_BxT
  positions_BxT = np.arange(T)[None].repeat(B, 0) if positions_BxT is None else positions_BxT
  H = config.num_heads if neo else config.n_head
  K = config.hidden_size // H
  kinds = config.attention_layers if neo else ["global"] * config.n_layer
  window = config.window_size if neo else None
  scale = 1.0 if neo or not config.scale_attn_weights else 1 / np.sqrt(K)
  by_layer = not neo and config.scale_attn_by_inverse_layer_idx
  activation = _ACTIVATIONS[config.activation_function]
  visible = {kind: _visible_BxTxT(kind, window, real_BxT)[:, None] for kind in set(kinds)}

  def linear(x, name):
    weight = state[f"{name}.weight"]
    y = x @ (weight.T if neo else weight)
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y

  def norm(x, name):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return _layer_norm(x, weight, bias, config.layer_norm_epsilon, xp)

  wte, wpe = state["transformer.wte.weight"], state["transformer.wpe.weight"]
  x_BxTxD = wte[ids_BxT] + wpe[positions_BxT]
  for i, kind in enumerate(kinds):
    layer = f"transformer.h.{i}"
    h_BxTxD = norm(x_BxTxD, f"{layer}.ln_1")
    if neo:
      qkv = [linear(h_BxTxD, f"{layer}.attn.attention.{n}_proj") for n in "qkv"]
    else:
      qkv_BxTx3xD = linear(h_BxTxD, f"{layer}.attn.c_attn").reshape(B, T, 3, H * K)
      qkv = [qkv_BxTx3xD[:, :, n] for n in range(3)]
    q, k, v = (x.reshape(B, T, H, K).swapaxes(1, 2) for x in qkv)
    scores_BxHxTxT = scale / (i + 1 if by_layer else 1) * (q @ k.swapaxes(2, 3))
    scores_BxHxTxT = xp.where(xp.asarray(visible[kind]), scores_BxHxTxT, -np.inf)
    probs_BxHxTxT = xp.exp(scores_BxHxTxT - xp.amax(scores_BxHxTxT, -1, keepdims=True))
    probs_BxHxTxT = probs_BxHxTxT / probs_BxHxTxT.sum(-1, keepdims=True)
    out_BxTxD = (probs_BxHxTxT @ v).swapaxes(1, 2).reshape(B, T, H * K)
    name = "attn.attention.out_proj" if neo else "attn.c_proj"
    x_BxTxD = x_BxTxD + linear(out_BxTxD, f"{layer}.{name}")
    h_BxTxF = activation(linear(norm(x_BxTxD, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"), xp)
    x_BxTxD = x_BxTxD + linear(h_BxTxF, f"{layer}.mlp.c_proj")
  return norm(x_BxTxD, "transformer.ln_f")


def logits(state, config, ids_BxT, real_BxT=None, positions_BxT=None, xp=np):
  """Logits, B x T x V; arguments as of `hidden`."""
  x_BxTxD = hidden(state, config, ids_BxT, real_BxT, positions_BxT, xp)
  return x_BxTxD @ state["transformer.wte.weight"].T


def outputs(state, name, x_BxTxD, token_B):
  """What the head with the tensors `name` says: of all positions, or of token_B of each row."""
  if token_B is not None:
    x_BxTxD = x_BxTxD[np.arange(len(token_B)), token_B]
  y = x_BxTxD @ state[f"{name}.weight"].T
  return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def loss(state, config, ids_BxT, labels_BxT, real_BxT=None, positions_BxT=None, xp=np):
  """Mean negative log-likelihood of the labels that are not -100, already shifted."""
  logits_BxTxV = logits(state, config, ids_BxT, real_BxT, positions_BxT, xp)
  b, t = np.nonzero(labels_BxT != -100)
  return cross_entropy(logits_BxTxV[b, t], labels_BxT[b, t], xp)


def cross_entropy(logits_NxC, labels_N, xp=np):
  """Mean over the rows."""
  logits_NxC = logits_NxC - xp.amax(logits_NxC, -1, keepdims=True)
  log_probs_NxC = logits_NxC - xp.log(xp.exp(logits_NxC).sum(-1, keepdims=True))
  return -log_probs_NxC[np.arange(len(labels_N)), labels_N].mean()


def gradients(function, state):
  """Values and gradients of `function(state, torch)`, which gives a scalar and anything else.

  Returns NumPy: the scalar, the rest with its tensors as they are, gradients by name.
  """
  import torch

  state = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True)
           for name, x in state.items()}  # fmt: skip
  value, rest = function(state, torch)
  value.backward()
  return value.item(), rest, {name: x.grad.numpy() for name, x in state.items()}
