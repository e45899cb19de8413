"""Every processor and filter against transformers' own on random scores, their order, the draws."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from gptneo_jax.generation import sampling

pytestmark = pytest.mark.parity

V, S = 48, 12  # vocabulary, columns
EOS = (3, 7)

# Options, each alone: what they are called in both, and values to draw from.
ALONE = {
  "sequence_bias": [{(5,): 2.5, (9,): -1.0, (1, 2): 3.0, (2, 1): -4.0, (1, 2, 1): 1.5}],
  "repetition_penalty": [1.3, 0.7],
  "no_repeat_ngram_size": [1, 2, 3, 30],
  "bad_words_ids": [[[3], [8], [1, 2], [2, 2]]],
  "min_length": [4, 8, 30],
  "min_new_tokens": [1, 4],
  "forced_bos_token_id": [6],
  "forced_eos_token_id": [3, [3, 9]],
  "remove_invalid_values": [True],
  "exponential_decay_length_penalty": [(2, 1.4), (0, 0.6)],
  "suppress_tokens": [[0, 4, 47]],
  "begin_suppress_tokens": [[1, 46]],
  "renormalize_logits": [True],
}
SAMPLED = {
  "temperature": [0.3, 1.7],
  "top_h": [0.2, 0.6, 0.9],  # at 1 rounding decides whether the last one stays
  "top_k": [1, 5, 100],
  "top_p": [0.0, 0.3, 0.9],
  "min_p": [0.0, 0.05, 0.5],
  "typical_p": [0.2, 0.9],
  "epsilon_cutoff": [0.01, 0.2],
  "eta_cutoff": [0.01, 0.3],
}

process = jax.jit(sampling.process_logits, static_argnums=0)


@functools.cache
def reference():
  """A model whose only use is to build transformers' list of processors."""
  return transformers.GPTNeoForCausalLM(
    transformers.GPTNeoConfig(
      vocab_size=V, hidden_size=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
      max_position_embeddings=64,
    )
  )  # fmt: skip


def theirs(options, ids_BxT, prompt_width, max_length, mask_BxT=None):
  """Their processors for these options."""
  model = reference()
  config = transformers.GenerationConfig(**options, max_length=max_length, eos_token_id=list(EOS))
  config = model._prepare_generation_config(config)[0]
  model._prepare_special_tokens(config, True)
  mask_BxT = np.ones_like(ids_BxT) if mask_BxT is None else mask_BxT
  return model._get_logits_processor(
    config, prompt_width, model_kwargs={"attention_mask": torch.tensor(mask_BxT)}, device="cpu"
  )


def both(options, ids_BxT, scores_BxV, prompt_width, max_length=20, left_pad_B=None):
  """Scores after their processors and after ours."""
  B, T = ids_BxT.shape
  left_pad_B = np.zeros(B, np.int32) if left_pad_B is None else left_pad_B
  mask_BxT = (np.arange(T) >= left_pad_B[:, None]).astype(int)
  processors = theirs(options, ids_BxT, prompt_width, max_length, mask_BxT)
  try:
    expected = processors(torch.tensor(ids_BxT), torch.tensor(scores_BxV)).numpy()
  except ValueError:  # their top_h does not take the NaN that their exponential decay makes of -inf
    reject()
  pipeline = sampling.make_pipeline(
    sampling.GenerationOptions.from_dict(options), vocab_size=V, eos=EOS,
    prompt_width=prompt_width, max_length=max_length,
  )  # fmt: skip
  buffer_BxS = np.full((B, S), 1, np.int32)  # what is after the end must not matter
  buffer_BxS[:, :T] = ids_BxT
  history = sampling.History(buffer_BxS, left_pad_B, np.int32(T), np.int32(prompt_width))
  return expected, np.asarray(process(pipeline.processors, pipeline.values, history, scores_BxV))


def draw(seed, B=3, T=None):
  """Few distinct ids, so that sequences repeat; scores of several spreads, some at -inf."""
  rng = np.random.default_rng(seed)
  T = rng.integers(1, S + 1) if T is None else T
  ids_BxT = rng.integers(0, 4, (B, T))
  scores_BxV = (rng.normal(size=(B, V)) * rng.choice([0.5, 3.0, 8.0])).astype(np.float32)
  scores_BxV[rng.random((B, V)) < 0.05] = -np.inf
  return ids_BxT, scores_BxV, int(rng.integers(1, T + 1))


def assert_same(ours, expected, case):
  np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected), err_msg=str(case))
  np.testing.assert_allclose(ours, expected, rtol=3e-6, atol=3e-6, err_msg=str(case))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
@pytest.mark.parametrize("name", [*ALONE, *SAMPLED])
def test_each_alone(name, seed):
  ids_BxT, scores_BxV, prompt_width = draw(seed)
  for value in {**ALONE, **SAMPLED}[name]:
    options = {name: value}
    if name in SAMPLED:
      options = {"do_sample": True, "top_k": 0, name: value}
    if name == "top_h":  # an entropy of nearly 0 is nothing but rounding
      scores_BxV = scores_BxV / max(1.0, scores_BxV[np.isfinite(scores_BxV)].std() / 3)
    expected, ours = both(options, ids_BxT, scores_BxV, prompt_width)
    assert_same(ours, expected, options)


@example(
  seed=1387, beams=False,
  names={"top_h", "remove_invalid_values", "exponential_decay_length_penalty", "min_length"},
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@given(
  seed=st.integers(0, 2**20),
  names=st.sets(st.sampled_from([*ALONE, *SAMPLED]), min_size=2, max_size=6),
  beams=st.booleans(),
)
def test_several_together(seed, names, beams):
  """In one order, that of transformers, whatever order they are named in."""
  ids_BxT, scores_BxV, prompt_width = draw(seed)
  rng = np.random.default_rng(seed)
  options = {"do_sample": True, "top_k": 0, "num_beams": 2 if beams else 1}
  for name in names - ({"min_length"} if "min_new_tokens" in names else set()):
    values = {**ALONE, **SAMPLED}[name]
    options[name] = values[rng.integers(len(values))]
  expected, ours = both(options, ids_BxT, scores_BxV, prompt_width)
  kept = np.isfinite(expected) == np.isfinite(ours)
  # Where a threshold falls between two ids, rounding may decide: at most one id a row.
  assert (~kept).sum(-1).max() <= 1, options
  np.testing.assert_allclose(ours[kept], expected[kept], rtol=2e-5, atol=2e-5, err_msg=str(options))


def test_order():
  """The list of all processors, as transformers builds it."""
  options = {name: values[0] for name, values in {**ALONE, **SAMPLED}.items()}
  del options["min_length"]
  options |= {"do_sample": True, "guidance_scale": 1.5}
  ids_BxT = np.ones((1, 1), int)  # a prompt of one token: forced_bos_token_id is for it only
  classes = [type(p).__name__ for p in theirs(options, ids_BxT, 1, 20)]
  pipeline = sampling.make_pipeline(
    sampling.GenerationOptions.from_dict(options), vocab_size=V, eos=EOS, prompt_width=1,
    max_length=20,
  )  # fmt: skip
  names = {
    "guidance": "UnbatchedClassifierFreeGuidance", "sequence_bias": "SequenceBias",
    "repetition_penalty": "RepetitionPenalty", "no_repeat_ngram": "NoRepeatNGram",
    "bad_words": "NoBadWords", "min_length": "MinLength", "min_new_tokens": "MinNewTokensLength",
    "forced_bos": "ForcedBOSToken", "forced_eos": "ForcedEOSToken",
    "remove_invalid_values": "InfNanRemove",
    "exponential_decay_length_penalty": "ExponentialDecayLengthPenalty",
    "suppress_tokens": "SuppressTokens", "begin_suppress_tokens": "SuppressTokensAtBegin",
    "temperature": "Temperature", "top_h": "TopH", "top_k": "TopK", "top_p": "TopP",
    "min_p": "MinP", "typical_p": "Typical", "epsilon_cutoff": "Epsilon", "eta_cutoff": "Eta",
    "renormalize": "LogitNormalization",
  }  # fmt: skip
  stripped = [c.removesuffix("LogitsProcessor").removesuffix("LogitsWarper") for c in classes]
  # transformers sets min_length as well where min_new_tokens is given; the two say the same.
  stripped = [c for c in stripped if c != "MinLength"]
  assert [names[stage.name] for stage in pipeline.processors] == stripped


def test_penalty_leaves_padding_out():
  ids_BxT, scores_BxV, _ = draw(1, T=9)
  ids_BxT[:, :4] = 20
  left_pad_B = np.array([0, 4, 6], np.int32)
  expected, ours = both({"repetition_penalty": 1.7}, ids_BxT, scores_BxV, 9, left_pad_B=left_pad_B)
  assert_same(ours, expected, "padding")


@pytest.mark.parametrize("name", ["no_repeat_ngram_size", "sequence_bias", "bad_words_ids"])
def test_padding_is_no_part_of_a_row(name):
  """Where transformers would read the padding, a row gets what it gets alone."""
  for seed in range(10):
    ids_BxT, scores_BxV, _ = draw(seed, B=1, T=5)
    for value in ALONE[name]:
      alone = both({name: value}, ids_BxT, scores_BxV, 3)[0]
      for pad in range(4):
        padded_BxT = np.pad(ids_BxT, ((0, 0), (4, 0)), constant_values=pad)
        ours = both({name: value}, padded_BxT, scores_BxV, 7, left_pad_B=np.array([4], np.int32))[1]
        assert_same(ours, alone, (name, value, pad))


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"temperature": 0.7, "top_p": 0.8},
    {"top_k": 0, "typical_p": 0.7},
    {"temperature": 1.6, "min_p": 0.1, "repetition_penalty": 1.4},
  ],
  ids=str,
)
def test_distribution_of_draws(options):
  """Chi-square of 100,000 draws against the probabilities transformers samples from."""
  from scipy import stats

  ids_BxT, scores_BxV, width = draw(5, B=1, T=6)
  options = {"do_sample": True, **options}
  scores_1xV, _ = both(options, ids_BxT, scores_BxV, width)
  probs_V = torch.tensor(scores_1xV).double().softmax(-1).numpy()[0]
  pipeline = sampling.make_pipeline(
    sampling.GenerationOptions.from_dict(options), vocab_size=V, eos=EOS, prompt_width=width,
    max_length=20,
  )  # fmt: skip
  N = 100_000
  history = sampling.History(ids_BxT.astype(np.int32), np.zeros(1, np.int32), 6, width)

  @jax.jit
  def draws(keys_N):
    scores = sampling.process_logits(pipeline.processors, pipeline.values, history, scores_BxV)
    return sampling.sample_token(keys_N, jax.numpy.broadcast_to(scores, (N, V)), True)

  counts_V = np.bincount(np.asarray(draws(jax.random.split(jax.random.key(0), N))), minlength=V)
  assert counts_V[probs_V == 0].sum() == 0
  often_V = probs_V * N >= 5
  rest = [probs_V[~often_V].sum() * N, counts_V[~often_V].sum()]
  expected = [*(probs_V[often_V] * N), rest[0]] if rest[0] > 0 else probs_V[often_V] * N
  counts = [*counts_V[often_V], rest[1]] if rest[0] > 0 else counts_V[often_V]
  expected = np.asarray(expected) * (N / np.sum(expected))
  assert stats.chisquare(counts, expected).pvalue > 1e-3
