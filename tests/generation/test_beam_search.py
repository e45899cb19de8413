"""Beam search; against transformers it is compared in tests/parity/test_generation_parity.py."""

import pytest

from gptneo_jax.errors import UserError
from tests.helpers.generated import new_ids


def test_beams_count_their_tokens(lm):
  """Also those whose log-probability is exactly 0, being the only choice."""
  only = {"suppress_tokens": [i for i in range(280) if i != 9], "renormalize_logits": True}
  beams = lm.generate(
    [[5, 6]], num_beams=2, max_new_tokens=5, eos_token_id=-1, output_logprobs=True, **only
  )
  assert beams.lengths.tolist() == [5] and new_ids(beams) == [9] * 5
  assert (beams.logprobs == 0.0).all()
  for name in ("output_scores", "output_logits"):
    with pytest.raises(UserError, match=f"{name} is of one token after another"):
      lm.generate([[5, 6]], num_beams=2, **{name: True})
