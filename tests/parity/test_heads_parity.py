"""Every head against transformers' eager PyTorch, on random models: outputs, losses, gradients.

The rule: our error against a float64 referee is at most twice PyTorch's, by root mean square and at
the largest, over all the batches that a model is given; and where PyTorch's is small the two agree
within a fixed tolerance.
"""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax.config import ModelConfig  # noqa: E402
from gptneo_jax.model import heads  # noqa: E402
from tests.helpers import hf_models  # noqa: E402
from tests.helpers.comparison import AGREE, NOT_WORSE, SMALL, largest, rms  # noqa: E402
from tests.helpers.head_cases import (  # noqa: E402
  B,
  draw_batch,
  make_case,
  our_program,
  settings,
  torch_run,
  true_run,
)

pytestmark = pytest.mark.parity

# Batches a model is given. The largest error of one batch is partly chance: between two who round
# alike the ratio of it reaches 4, that of the largest of all batches stays below 2.
BATCHES = 64
GRADIENT_BATCHES = 8
FEW = 8  # numbers of a tensor
STDS = (0.02, 0.1, 0.3)  # of the weights: each model is tried with all, for one compilation


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
  """The rule for gradients, tensor by tensor and over all tensors.

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
  most = max(largest(truth) for batch in truths for truth in batch)
  errors = []  # tensors x batches x ours and PyTorch's
  for name, *tensors in zip(names, zip(*ours), zip(*theirs), zip(*truths), strict=True):
    if max(map(largest, tensors[2])) <= 1e-9 * most:  # none: a bias added to all of a softmax
      assert max(map(largest, tensors[0])) <= 1e-6 * most, name
      continue
    rows = []
    for our, their, truth in zip(*tensors):
      size = max(largest(truth), 1e-3 * most)
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
  part = lambda k, n=BATCHES: [[batch[k] for batch in side[:n]] for side in (ours, theirs, truths)]
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
