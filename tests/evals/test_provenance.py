"""Provenance: fingerprints of models."""

import jax
import numpy as np

from gptneo_jax.evals import provenance
from tests.helpers.tiny_lm import tiny_lm


def test_fingerprint():
  """Equal for equal models; a difference if only two rows are exchanged."""
  lm = tiny_lm()
  assert provenance.of_model(tiny_lm()) == provenance.of_model(lm)
  changed = tiny_lm()
  wte = np.asarray(changed.params["wte"]).copy()
  wte[[3, 4]] = wte[[4, 3]]
  changed.params = {**changed.params, "wte": jax.numpy.asarray(wte)}
  assert provenance.of_model(changed) != provenance.of_model(lm)
