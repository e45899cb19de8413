"""Speculative decoding: the same tokens, and the same distribution, as without."""

import jax
import numpy as np
import pytest

from gptneo_jax import engine, model_io
from tests.helpers.generated import new_ids, prompts_of


def smaller(lm, noise):
  """A model with nearly the same outputs, as a draft model should be."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + (noise * rng.standard_normal(x.shape)).astype(x.dtype), lm.params
  )
  draft = engine.LanguageModel(model_io.LoadedModel(lm.config, params), lm.mesh)
  draft.tokenizer = lm.tokenizer
  return draft


def test_speculation_is_greedy_search(lm):
  """Whatever the drafts: good, bad, looked up; beyond the window, and up to an end."""
  prompts = [*prompts_of(3, 40), [5, 6, 7, 5, 6, 7, 5, 6]]
  plain = {"max_new_tokens": 50, "repetition_penalty": 1.1}
  end = new_ids(lm.generate(prompts, **plain), 1)[20]
  for more in ({"eos_token_id": -1}, {"eos_token_id": end}):
    expected = lm.generate(prompts, **plain, **more)
    for drafts in (
      {"assistant_model": smaller(lm, 0.003), "num_assistant_tokens": 4},
      {"assistant_model": smaller(lm, 1.0), "num_assistant_tokens": 4},
      {"prompt_lookup_num_tokens": 4},
    ):
      got = lm.generate(prompts, **plain, **more, **drafts)
      assert [new_ids(got, b) for b in range(3)] == [new_ids(expected, b) for b in range(3)]
      assert got.accepted <= 1
  good = lm.generate(prompts, **plain, assistant_model=smaller(lm, 0.003))
  bad = lm.generate(prompts, **plain, assistant_model=smaller(lm, 1.0))
  assert good.accepted > 0.5 > bad.accepted


def test_padding_of_drafts_is_not_accepted(lm):
  """Few of 16 places hold drafts: the others hold id 0, which is what the model chooses."""
  options = {"suppress_tokens": list(range(1, 280)), "eos_token_id": -1, "max_new_tokens": 40}
  got = lm.generate([[5, 6, 7]], prompt_lookup_num_tokens=16, **options)
  assert new_ids(got) == [0] * 40
  assert got.accepted == 1.0  # whatever was proposed was a repetition of 0
  none = lm.generate([[5, 6, 7]], prompt_lookup_num_tokens=4, max_new_tokens=1)
  assert none.accepted == 0.0


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_speculation_draws_from_the_same_distribution(lm, kind):
  """Chi-square over the second and third new token of many draws, against the model's own."""
  from scipy import stats

  prompt = [5, 6, 7, 8, 5, 6]
  options = {"do_sample": True, "top_k": 3, "temperature": 1.5, "max_new_tokens": 3}
  drafts = (
    {"assistant_model": smaller(lm, 0.1), "num_assistant_tokens": 2}
    if kind == "draft" else {"prompt_lookup_num_tokens": 2}
  )  # fmt: skip
  N = 200
  got = lm.generate([prompt] * N, eos_token_id=-1, **options, **drafts)
  plain = lm.generate([prompt] * 6 * N, eos_token_id=-1, seed=1, **options)
  for place in (-3, -2, -1):
    values = np.unique(plain.sequences[:, place])
    table = [(x.sequences[:, place, None] == values).sum(0) for x in (got, plain)]
    assert sum(table[0]) >= N - 2  # nothing that the model would not say
    often = table[1] >= 20
    assert stats.chi2_contingency([row[often] for row in table]).pvalue > 1e-3
