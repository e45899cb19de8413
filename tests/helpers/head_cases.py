"""Random models with a head, a batch with labels for each, and its three sides.

The sides are transformers in PyTorch, ours, and a float64 referee: outputs, losses and (if asked
for) gradients.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import torch
from hypothesis import strategies as st

from gptneo_jax.config import ModelConfig
from gptneo_jax.model import heads
from gptneo_jax.model.losses import IGNORED
from tests.helpers import hf_models, referee
from tests.helpers.compiling import AS_IN_USE

B = 6  # rows; of choices for double heads: 3 questions of 2


@dataclasses.dataclass
class Case:
  """A model of PyTorch's, and a batch with labels as it takes them."""

  hf: Any
  padding: str
  ids_BxT: np.ndarray
  real_BxT: np.ndarray
  token_B: np.ndarray | None  # the positions that the head reads
  labels: Any

  @property
  def config(self) -> ModelConfig:
    return hf_models.config_of(self.hf)

  @property
  def positions_BxT(self) -> np.ndarray:
    return np.clip(self.real_BxT.cumsum(1) - 1, 0, None)


PATTERNS = [
  ("global", "local"), ("local", "global"), ("local",), ("global",), ("global", "global", "local")
]  # fmt: skip

PROBLEMS = ["regression", "single_label_classification", "multi_label_classification", None]

# Widths from 8: with fewer numbers layer norm now and then divides by a deviation of nearly none,
# and one such position, where no rounding can be foreseen, decides about the largest error.
SHAPES = [(h, k) for h in (3, 1, 2, 4) for k in (5, 3, 4, 7, 8) if h * k >= 8]


@st.composite
def settings(draw, family, head):
  """Arguments of `make_case`: layers, heads, odd head sizes, window, vocabulary, pattern, …"""
  pattern = draw(st.sampled_from(PATTERNS))
  window = draw(st.sampled_from([5, 2, 3, 4, 6, 7, 8, 9]))
  number, size = draw(st.sampled_from(SHAPES))
  num_labels = draw(st.sampled_from([3, 1, 2, 4]))
  problem = draw(st.sampled_from(PROBLEMS))
  if problem == "single_label_classification" and num_labels == 1:
    problem = None  # which transformers takes for a regression, and refuses the other
  return dict(  # hypothesis begins with the first of each list
    family=family,
    head=head,
    pattern=pattern,
    layers=len(pattern) * draw(st.sampled_from([2, 1])),
    heads=number,
    head_dim=size,
    window=window,
    vocab=draw(st.integers(17, 80)),
    intermediate=draw(st.sampled_from([None, 19, 50])),
    T=draw(st.integers(3 * window + 1, 4 * window + 6)),
    padding=draw(st.sampled_from(["none", "left", "right"])),
    problem=problem,
    num_labels=num_labels,
    seed=draw(st.integers(0, 99)),
  )


def make_case(
  family, head, std, *, pattern=("global", "local"), layers=2, heads=2, head_dim=5, window=4,
  vocab=29, intermediate=None, T=15, padding="none", problem=None, num_labels=3, seed=0,
) -> Case:  # fmt: skip
  options = dict(
    cls=hf_models.CLASSES[family][head], layers=layers, heads=heads, hidden=heads * head_dim,
    vocab=vocab, intermediate=intermediate, positions=64, std=std, seed=seed,
    pad_token_id=seed % vocab,
  )  # fmt: skip
  if head in ("sequence_classification", "token_classification"):
    options["num_labels"] = num_labels
  if head == "sequence_classification":
    options["problem_type"] = problem
  if family == "gpt_neo":
    hf = hf_models.gpt_neo(pattern=pattern, window=window, **options)
  else:
    hf = hf_models.gpt2(**options)
  return draw_batch(hf, T, padding, problem, seed)


def draw_batch(hf, T, padding, problem, seed) -> Case:
  rng = np.random.default_rng(seed)
  head, pad, num_labels = hf_models.head_of(hf), hf.config.pad_token_id, hf.config.num_labels
  lengths_B = rng.integers(T // 3, T + 1, B) if padding != "none" else np.full(B, T)
  real_BxT = np.arange(T) < lengths_B[:, None]
  if padding == "left":
    real_BxT = real_BxT[:, ::-1]
  ids_BxT = np.where(real_BxT, rng.integers(0, hf.config.vocab_size, (B, T)), pad)
  token_B = None
  tokens = np.where(real_BxT, ids_BxT, IGNORED)
  if head == "lm":
    labels = tokens
  elif head == "token_classification":
    labels = np.where(real_BxT & (rng.random((B, T)) < 0.8), ids_BxT % num_labels, IGNORED)
  elif head == "question_answering":
    labels = rng.integers(0, T + 5, (2, B))  # some past the end, which do not count
    labels[:, 0] = 0, T - 1
  elif head == "double_heads":
    token_B = np.array([rng.choice(np.flatnonzero(real)) for real in real_BxT])
    labels = tokens, rng.integers(0, 2, B // 2)
  else:
    token_B = (np.arange(T) * (ids_BxT != pad)).argmax(-1)
    labels = rng.integers(0, num_labels, B)
    if problem == "regression" or (problem is None and num_labels == 1):
      labels = rng.standard_normal((B, num_labels)).astype(np.float32)
    elif problem == "multi_label_classification":
      labels = rng.integers(0, 2, (B, num_labels)).astype(np.float32)
  return Case(hf, padding, ids_BxT, real_BxT, token_B, labels)


def torch_run(case, with_gradients=True):
  """transformers' own class."""
  head = case.config.head
  tensor = lambda x: torch.tensor(np.ascontiguousarray(x))
  inputs = dict(
    input_ids=tensor(case.ids_BxT),
    attention_mask=tensor(case.real_BxT.astype(np.int64)),
    position_ids=tensor(case.positions_BxT),
  )
  if head == "question_answering":
    inputs |= dict(start_positions=tensor(case.labels[0]), end_positions=tensor(case.labels[1]))
  elif head == "double_heads":
    half = lambda x: tensor(x.reshape(B // 2, 2, *x.shape[1:]))
    inputs |= dict(input_ids=half(case.ids_BxT), mc_token_ids=half(case.token_B))
    inputs |= dict(labels=half(case.labels[0]), mc_labels=tensor(case.labels[1]))
  else:
    inputs["labels"] = tensor(case.labels)
  case.hf.zero_grad()
  with torch.set_grad_enabled(with_gradients):
    result = case.hf(**inputs)
  losses = [result.loss, result.mc_loss] if head == "double_heads" else [result.loss]
  gradients = None
  if with_gradients:
    sum(losses).backward()
    gradients = hf_models.tensors(case.hf, gradients=True)
  outputs = {
    "question_answering": lambda: (result.start_logits, result.end_logits),
    "double_heads": lambda: (result.logits.flatten(0, 1), result.mc_logits.flatten()),
  }.get(head, lambda: (result.logits,))()
  return [x.detach().numpy() for x in outputs], [x.item() for x in losses], gradients


def our_program(config):
  """Ours, compiled at its first call for batches of one shape; with gradients always."""
  module = heads.build(config)
  as_numpy = lambda tree: jax.tree.map(np.asarray, tree)

  @functools.partial(jax.jit, compiler_options=AS_IN_USE)
  def both(params, ids_BxT, labels, options):
    def total(params):
      method = "logits" if config.head == "lm" else "outputs"
      outputs = module.apply({"params": params}, ids_BxT, method=method, **options)
      losses = jax.tree.leaves(heads.loss(config, outputs, labels))
      return sum(losses), (jax.tree.leaves(outputs), losses)

    return jax.grad(total, has_aux=True)(params)

  def run(case):
    params = hf_models.to_params(hf_models.tensors(case.hf), config)
    options = {}
    if config.head == "double_heads":  # sequence classification is to find the positions itself
      options["token_B"] = case.token_B
    if case.padding != "none":
      options["positions_BxT"] = case.positions_BxT
      options["segment_ids_BxT"] = case.real_BxT.astype(np.int32)
    gradients, (outputs, losses) = both(params, case.ids_BxT, case.labels, options)
    return as_numpy(outputs), [float(x) for x in losses], as_numpy(gradients)

  return run


def true_run(case, with_gradients=True, rounding=None):
  """In float64, from definitions that share nothing with either.

  rounding: seed by which every weight is moved by about a float32's last place.
  """
  config, hf = case.config, case.hf.config

  def losses(state, xp):
    x_BxTxD = referee.hidden(state, hf, case.ids_BxT, case.real_BxT, case.positions_BxT, xp)
    tokens = lambda: x_BxTxD @ state["transformer.wte.weight"].T
    if config.head == "lm":
      logits = tokens()
      return [logits], [next_token(logits, case.labels, xp)]
    name = hf_models.HEAD_TENSORS[config.head]
    y = referee.outputs(state, name, x_BxTxD, case.token_B)
    if config.head == "double_heads":
      logits, (labels, choices) = tokens(), case.labels
      losses = [next_token(logits, labels, xp), referee.cross_entropy(y.reshape(3, 2), choices, xp)]
      return [logits, y[:, 0]], losses
    if config.head == "question_answering":
      parts = []
      for k, at_B in enumerate(case.labels):
        inside = at_B < case.ids_BxT.shape[1]
        parts.append(referee.cross_entropy(y[inside, :, k], at_B[inside], xp))
      return [y[..., 0], y[..., 1]], [sum(parts) / 2]
    if config.head == "token_classification":
      b, t = np.nonzero(case.labels != IGNORED)
      return [y], [referee.cross_entropy(y[b, t], case.labels[b, t], xp)]
    if case.labels.dtype.kind == "i":
      return [y], [referee.cross_entropy(y, case.labels, xp)]
    labels = xp.asarray(case.labels)
    if config.problem_type == "multi_label_classification":
      p = 1 / (1 + xp.exp(-y))
      return [y], [-(labels * xp.log(p) + (1 - labels) * xp.log(1 - p)).mean()]
    return [y], [((y - labels) ** 2).mean()]

  def next_token(logits, labels, xp):
    b, t = np.nonzero(labels[:, 1:] != IGNORED)
    return referee.cross_entropy(logits[b, t], labels[b, t + 1], xp)

  def total(state, xp):
    outputs, values = losses(state, xp)
    return sum(values), (outputs, values)

  state = hf_models.tensors(case.hf)
  if not with_gradients:
    state = {name: x.astype(np.float64) for name, x in state.items()}
    if rounding is not None:
      rng, place = np.random.default_rng(rounding), np.finfo(np.float32).eps
      state = {name: x * (1 + place * rng.standard_normal(x.shape)) for name, x in state.items()}
    outputs, values = losses(state, np)
    return outputs, [float(x) for x in values], None
  _, (outputs, values), gradients = referee.gradients(total, state)
  return [x.detach().numpy() for x in outputs], [x.item() for x in values], gradients
