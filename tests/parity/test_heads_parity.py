"""Every head against transformers' eager PyTorch, on random models: outputs, losses, gradients.

The rule: our error against a float64 referee is at most twice PyTorch's, by root mean square and at
the largest, over all the batches that a model is given; and where PyTorch's is small the two agree
outright.
"""

import dataclasses
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax.config import ModelConfig  # noqa: E402
from gptneo_jax.model import decoder, heads  # noqa: E402
from gptneo_jax.model.losses import IGNORED  # noqa: E402
from tests.helpers import hf_models, referee  # noqa: E402
from tests.helpers.comparison import AGREE, NOT_WORSE, SMALL, largest, rms  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # the tensors are tiny

# Batches a model is given. The largest error of one batch is partly chance: between two who round
# alike the ratio of it reaches 4, that of the largest of all batches stays below 2.
BATCHES = 64
GRADIENT_BATCHES = 8
FEW = 8
STDS = (0.02, 0.1, 0.3)  # of the weights: each model is tried with all, for one compilation
B = 6  # rows; of choices for double heads: 3 questions of 2


# --- random models and inputs -------------------------------------------------------------------


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
  return dict(  # what stands first is what hypothesis begins with
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


# --- the three sides: outputs, losses and (if asked for) gradients -------------------------------


def torch_run(case, with_gradients=True):
  """transformers' own class."""
  head = case.config.head
  tensor = lambda x: torch.tensor(np.ascontiguousarray(x))  # noqa: E731
  inputs = dict(
    input_ids=tensor(case.ids_BxT),
    attention_mask=tensor(case.real_BxT.astype(np.int64)),
    position_ids=tensor(case.positions_BxT),
  )
  if head == "question_answering":
    inputs |= dict(start_positions=tensor(case.labels[0]), end_positions=tensor(case.labels[1]))
  elif head == "double_heads":
    half = lambda x: tensor(x.reshape(B // 2, 2, *x.shape[1:]))  # noqa: E731
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
  as_numpy = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731

  @jax.jit
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
    tokens = lambda: x_BxTxD @ state["transformer.wte.weight"].T  # noqa: E731
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


# --- the comparison -----------------------------------------------------------------------------


def compare_outputs(cases, ours, theirs, truths):
  """The rule for outputs; returns the largest errors over all batches, ours and PyTorch's.

  By root mean square over everything, and largest error by largest error. For these a batch counts
  by how far rounding of the weights alone moves it (float64): else one batch out of 64, the worst
  conditioned, would decide by chance.
  """
  worst = [0.0, 0.0]
  rounded = [true_run(case, False, rounding=i)[0] for i, case in enumerate(cases)]
  for number in range(len(truths[0])):
    batches = [
      [_at_tokens(case, outputs[number]) for case, outputs in zip(cases, side)]
      for side in (ours, theirs, truths)
    ]
    our, their, truth = map(np.concatenate, batches)
    assert our.shape == their.shape == truth.shape
    errors = largest(our - truth), largest(their - truth)
    figures = (
      f"output {number}: ours {errors[0]:.2e}, PyTorch {errors[1]:.2e},"
      f" root mean squares {rms(our - truth):.2e} and {rms(their - truth):.2e}"
    )
    assert rms(our - truth) <= NOT_WORSE * rms(their - truth), figures
    scales = [
      rms(_at_tokens(case, moved[number]) - true)
      for case, moved, true in zip(cases, rounded, batches[2])
    ]
    our_worst, their_worst = (
      max(largest(x - true) / scale for x, true, scale in zip(side, batches[2], scales))
      for side in batches[:2]
    )
    assert our_worst <= NOT_WORSE * their_worst, f"{figures}; of rounding: {our_worst, their_worst}"
    if errors[1] < SMALL:
      assert largest(our - their) <= AGREE, figures
    worst = [max(pair) for pair in zip(worst, errors)]
  return worst


def _at_tokens(case, output):
  """What an output says where tokens are: at padding there is no truth."""
  return output[case.real_BxT] if output.shape[:2] == case.ids_BxT.shape else output


def compare_losses(ours, theirs, truths):
  """The rule for losses, by root mean square over the batches: each batch x losses.

  Or right to the last place, which neither side can answer for.
  """
  ours, theirs, truths = map(np.array, (ours, theirs, truths))
  for our, their, truth in zip(ours.T, theirs.T, truths.T):
    figures = f"losses: ours {rms(our - truth):.2e}, PyTorch {rms(their - truth):.2e}"
    place = np.finfo(np.float32).eps * np.abs(truth).mean()
    assert rms(our - truth) <= max(NOT_WORSE * rms(their - truth), place), figures
    np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-6)


def compare_gradients(case, ours, theirs, truths):
  """The rule for gradients, tensor by tensor and as a whole.

  By root mean square over a tensor, relative to its size (to a thousandth of the largest tensor
  where its terms cancel), and in the geometric mean of the ratios over the batches: of one batch a
  single position may decide. Tensors of fewer than FEW numbers are to be right to 1e-6.
  Returns the root mean squares over everything, ours and PyTorch's.
  """
  theirs, truths = (
    [hf_models.to_params(x, case.config) for x in side] for side in (theirs, truths)
  )
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(ours[0])
  ]
  ours, theirs, truths = ([jax.tree.leaves(x) for x in side] for side in (ours, theirs, truths))
  whole = max(largest(truth) for batch in truths for truth in batch)
  errors = []  # tensors x batches x ours and PyTorch's
  for name, *tensors in zip(names, zip(*ours), zip(*theirs), zip(*truths), strict=True):
    if max(map(largest, tensors[2])) <= 1e-9 * whole:  # none: a bias added to all of a softmax
      assert max(map(largest, tensors[0])) <= 1e-6 * whole, name
      continue
    rows = []
    for our, their, truth in zip(*tensors):
      size = max(largest(truth), 1e-3 * whole)
      rows.append([(rms(x - truth) + 1e-9 * size) / size for x in (our, their)])
    few = tensors[0][0].size < FEW
    assert rms(np.array(rows)[:, 0]) <= 1e-6 if few else typical_ratio(rows) <= NOT_WORSE, name
    errors.append(rows)
  if not errors:  # one class: there is nothing to learn
    return 0.0, 0.0
  errors = np.sqrt(np.square(errors).mean(0))
  assert typical_ratio(errors) <= NOT_WORSE, f"gradients: {errors}"
  return tuple(map(rms, errors.T))


def typical_ratio(errors) -> float:
  """Geometric mean of the ratios of ours to theirs, of rows of both."""
  return float(np.exp(np.diff(np.log(errors), axis=-1).mean())) ** -1


def check(program, case, arguments):
  """Everything about one model; the largest errors."""
  of_inputs = {key: arguments[key] for key in ("T", "padding", "problem")}
  cases = [case] + [draw_batch(case.hf, seed=1000 + i, **of_inputs) for i in range(1, BATCHES)]
  ours = [program(case) for case in cases]
  theirs, truths = (
    [run(case, i < GRADIENT_BATCHES) for i, case in enumerate(cases)]
    for run in (torch_run, true_run)
  )
  part = lambda k, n=BATCHES: [[batch[k] for batch in side[:n]] for side in (ours, theirs, truths)]  # noqa: E731
  errors = compare_outputs(cases, *part(0))
  if case.config.head == "question_answering" and case.padding != "none":
    # Its loss is over all positions, and what either side says at padding is arbitrary.
    return [*errors, 0.0, 0.0]
  compare_losses(*part(1))
  return [*errors, *compare_gradients(case, *part(2, GRADIENT_BATCHES))]


HEADS = [(family, head) for family, classes in hf_models.CLASSES.items() for head in classes]


@pytest.mark.parametrize("family, head", HEADS)
def test_random_models(family, head, request):
  """Layers, heads, sizes, windows, vocabularies, patterns, padding, problems: drawn."""
  seen = []

  @hypothesis.settings(
    max_examples=request.config.getoption("--parity-examples"), deadline=None, database=None,
    derandomize=True, phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )  # fmt: skip
  @hypothesis.given(settings(family, head))
  def run(arguments):
    hypothesis.note(arguments)
    cases = [make_case(std=std, **arguments) for std in STDS]
    program = our_program(cases[0].config)
    seen.extend(check(program, case, arguments) for case in cases)

  run()
  figures = [f"{x:.1e}" for x in np.max(seen, axis=0)]
  print(f"{family} {head}, {len(seen)} models: outputs {figures[:2]}, gradients {figures[2:]}")


@pytest.mark.parametrize("mistake", ["window", "scale", "pooling"])
def test_a_mistake_is_noticed(mistake, monkeypatch):
  """A window or a scale forgotten, or the last position read where padding is: the rule breaks."""
  case = make_case("gpt_neo", "sequence_classification", 0.1, padding="right", T=14)
  cases = [case] + [draw_batch(case.hf, 14, "right", None, seed) for seed in range(1, 8)]
  config = case.config
  theirs, truths = ([run(c, False)[0] for c in cases] for run in (torch_run, true_run))

  def compare(config):
    program = our_program(config)
    compare_outputs(cases, [program(c)[0] for c in cases], theirs, truths)

  compare(config)
  if mistake == "window":
    config = config.replace(window_size=64)
  elif mistake == "scale":
    monkeypatch.setattr(ModelConfig, "attention_scale", property(lambda c: c.head_dim**-0.5))
  else:
    monkeypatch.setattr(heads, "last_tokens", lambda ids, pad: jnp.full(B, ids.shape[1] - 1))
  with pytest.raises(AssertionError, match="output 0: ours"):
    compare(config)


# --- states, attentions, bfloat16 ---------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_hidden_states_and_attentions(family):
  case = make_case(family, "lm", 0.1, layers=4, padding="left")
  variables = {"params": hf_models.to_params(hf_models.tensors(case.hf), case.config)}
  with torch.no_grad():
    theirs = case.hf(
      torch.tensor(case.ids_BxT),
      attention_mask=torch.tensor(case.real_BxT.astype(np.int64)),
      position_ids=torch.tensor(case.positions_BxT),
      output_hidden_states=True,
      output_attentions=True,
    )
  options = dict(positions_BxT=case.positions_BxT, segment_ids_BxT=case.real_BxT.astype(np.int32))
  module = heads.build(case.config)
  both = jax.jit(
    lambda v: [f(module, v, case.ids_BxT, **options) for f in (decoder.hidden_states,
                                                              decoder.attentions)]
  )  # fmt: skip
  states, attentions = both(variables)
  assert len(states) == len(theirs.hidden_states) == 5
  assert len(attentions) == len(theirs.attentions) == 4
  for our, their in zip(states, theirs.hidden_states):
    np.testing.assert_allclose(our[case.real_BxT], their.numpy()[case.real_BxT], atol=2e-5)
  for our, their in zip(attentions, theirs.attentions):
    queries = lambda x: np.moveaxis(np.asarray(x), 1, 2)[case.real_BxT]  # noqa: E731
    np.testing.assert_allclose(queries(our), queries(their), atol=1e-6)


def bfloat16_distances(hf, config, params, ids_BxT):
  """Root mean squares of differences of logits: ours to PyTorch's in bfloat16, and of both to
  float32 from the same, rounded weights. And the largest of the first and of PyTorch's."""
  config = config.replace(dtype="bfloat16", param_dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  forward = jax.jit(lambda p: heads.build(config).apply({"params": p}, ids_BxT, method="logits"))
  ours = np.asarray(forward(params))
  mask = torch.ones(ids_BxT.shape, dtype=torch.int64)
  with torch.no_grad():
    hf = hf.to(torch.bfloat16)
    theirs = hf(torch.tensor(ids_BxT), attention_mask=mask).logits.float().numpy()
    exact = hf.float()(torch.tensor(ids_BxT), attention_mask=mask).logits.numpy()
  apart, our, their = ours - theirs, ours - exact, theirs - exact
  return rms(apart), rms(our), rms(their), largest(apart), largest(their)


def check_bfloat16(name, apart, our, their, apart_most, their_most):
  """Two roundings that err alike, and know nothing of each other, are √2 of either apart."""
  print(
    f"bfloat16, {name}: apart {apart:.2e} (largest {apart_most:.2e}), our error {our:.2e},"
    f" PyTorch's {their:.2e} (largest {their_most:.2e})"
  )
  assert our <= their
  assert apart <= np.sqrt(2) * their
  assert apart_most <= 1.5 * their_most


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_bfloat16(family):
  case = make_case(family, "lm", 0.1, layers=4, heads=4, head_dim=8, T=40)
  params = hf_models.to_params(hf_models.tensors(case.hf), case.config)
  check_bfloat16(family, *bfloat16_distances(case.hf, case.config, params, case.ids_BxT))


def test_bfloat16_of_a_trained_model(shared_data):
  import transformers

  folder = str(shared_data / "checkpoints" / "neo_docs_hf")
  hf = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  with open(transformers.__file__, encoding="utf-8") as file:
    ids = transformers.AutoTokenizer.from_pretrained(folder)(file.read()[:8000]).input_ids
  ids_BxT = np.array(ids[:1200]).reshape(2, 600)
  config = hf_models.config_of(hf)
  params = hf_models.to_params(hf_models.tensors(hf), config)
  check_bfloat16("trained", *bfloat16_distances(hf, config, params, ids_BxT))
