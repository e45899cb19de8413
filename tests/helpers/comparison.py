"""The rule by which ours, PyTorch and the float64 referee are compared, and the batches for it."""

import dataclasses

import numpy as np

NOT_WORSE = 2.0  # our largest error over PyTorch's, both against float64
SMALL, AGREE = 2e-5, 1e-4  # where PyTorch's error is below SMALL, we are within AGREE of it


@dataclasses.dataclass
class Batch:
  ids_BxT: np.ndarray
  labels_BxT: np.ndarray  # shifted: what position t is to say; -100 where nothing counts
  real_BxT: np.ndarray
  positions_BxT: np.ndarray

  @property
  def torch_labels_BxT(self):
    """As transformers takes them: not shifted."""
    return np.pad(self.labels_BxT, ((0, 0), (1, 0)), constant_values=-100)[:, :-1]


def make_batch(vocab, B=2, T=40, pads=None, seed=0):
  """Random ids; row b starts with pads[b] positions of padding."""
  rng = np.random.default_rng(seed)
  ids_BxT = rng.integers(0, vocab, (B, T))
  real_BxT = np.arange(T)[None] >= np.asarray(pads or [0] * B)[:, None]
  labels_BxT = np.full((B, T), -100)
  labels_BxT[:, :-1] = np.where(real_BxT[:, :-1], ids_BxT[:, 1:], -100)
  positions_BxT = np.clip(real_BxT.cumsum(1) - 1, 0, None)
  return Batch(ids_BxT, labels_BxT, real_BxT, positions_BxT)


def rms(x):
  return float(np.sqrt(np.square(x).mean()))


def largest(x, kept=None):
  x = np.abs(x)
  return float(x.max() if kept is None else x[kept].max())


def compare(what, ours, theirs, truth, kept=None):
  """Applies the rule to one tensor; says the figures if it is broken."""
  our_error, their_error = largest(ours - truth, kept), largest(theirs - truth, kept)
  figures = f"{what}: ours {our_error:.2e}, PyTorch {their_error:.2e} of {largest(truth, kept):.2e}"
  assert our_error <= NOT_WORSE * their_error, figures
  if their_error < SMALL:
    assert largest(ours - theirs, kept) <= AGREE, figures
  return our_error, their_error
