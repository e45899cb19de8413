"""What `lm.generate` and `lm.stream` promise: batches, seeds, ends, outputs, faults, streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax import engine, model_io
from gptneo_jax.errors import UserError
from gptneo_jax.generation import decode
from tests.helpers.generated import new_ids, prompts_of

# --- batches and seeds ----------------------------------------------------------------------------


OPTIONS = {
  "greedy": {},
  "sampled": {"do_sample": True, "temperature": 1.3, "top_p": 0.95},
  "beams": {"num_beams": 3, "length_penalty": 0.7},
  "processors": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "bad_words_ids": [[3, 4]]},
  "guided": {"guidance_scale": 1.7, "negative_prompt": [[9, 8, 7, 6]]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_gives_each_prompt_what_it_gives_alone(lm, options):
  prompts = prompts_of(1, 30, 17)
  options = {**options, "max_new_tokens": 20}
  together = lm.generate(prompts, **options)
  for b, prompt in enumerate(prompts):
    alone = lm.generate([prompt], **options)
    assert new_ids(together, b) == new_ids(alone)
    assert together.texts[b] == alone.texts[0]
  assert len({tuple(new_ids(together, b)) for b in range(3)}) == 3


def test_seeds(lm):
  draw = lambda **more: lm.generate(
    prompts_of(5), do_sample=True, top_k=0, max_new_tokens=12, **more
  )
  assert new_ids(draw(seed=1)) == new_ids(draw(seed=1)) != new_ids(draw(seed=2))
  several = draw(seed=1, num_return_sequences=3)
  assert len(several.sequences) == len({tuple(new_ids(several, b)) for b in range(3)}) == 3
  assert new_ids(several, 0) == new_ids(draw(seed=1))
  same = lm.generate(prompts_of(5) * 2, do_sample=True, top_k=0, max_new_tokens=12, seed=1)
  assert [new_ids(same, b) for b in range(2)] == [new_ids(several, b) for b in range(2)]


def test_no_new_compilation_for_new_lengths(lm):
  """50 prompts of random lengths: no more loops than buffer sizes, two sizes of prompt pieces."""
  functions = (decode._advance, decode.prefill_chunk)
  before = [f._cache_size() for f in functions]
  rng = np.random.default_rng(0)
  for n in rng.integers(1, 80, 50):
    lm.generate([rng.integers(1, 280, n).tolist()], max_new_tokens=int(rng.integers(1, 10)),
                do_sample=True, temperature=float(rng.uniform(0.5, 2)), top_k=7)  # fmt: skip
  loops, reads = (f._cache_size() - b for f, b in zip(functions, before))
  assert loops <= 2 and reads <= 2  # buffers of 64 and 128 columns


# --- ends -----------------------------------------------------------------------------------------


def test_several_ends(lm):
  free = new_ids(lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=-1))
  ends = [free[4], free[7]]
  first = min(free.index(end) for end in ends)
  result = lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=ends, pad_token_id=2)
  assert new_ids(result) == free[: first + 1]


def test_min_new_tokens_and_forced_end(lm):
  free = new_ids(lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=-1))
  late = lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=free[1], min_new_tokens=9)
  assert late.lengths[0] >= 10
  assert free[1] not in new_ids(late)[:9]
  forced = new_ids(
    lm.generate(prompts_of(6), max_length=12, eos_token_id=-1, forced_eos_token_id=5)
  )
  assert len(forced) == 6 and forced[-1] == 5


# --- what is returned -----------------------------------------------------------------------------


def test_scores_and_logprobs(lm):
  options = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 8}
  result = lm.generate(
    prompts_of(6, 9), output_scores=True, output_logits=True, output_logprobs=True, **options
  )
  assert result.scores.shape == result.logits.shape == (8, 2, 280)
  assert (np.isfinite(result.scores).sum(-1) == 5).all()
  for b, prompt in enumerate(prompts_of(6, 9)):
    ids = new_ids(result, b)
    logits = np.asarray(lm.logits([prompt + ids]))[0, len(prompt) - 1 : -1]
    np.testing.assert_allclose(result.logits[: len(ids), b], logits, atol=2e-5)
    log = jax.nn.log_softmax(result.scores[: len(ids), b])
    expected = np.asarray(log)[np.arange(len(ids)), ids]
    np.testing.assert_allclose(result.logprobs[b, : len(ids)], expected, atol=1e-5)
  beams = lm.generate(
    prompts_of(6), num_beams=3, num_return_sequences=2, output_logprobs=True, max_new_tokens=8
  )
  means = beams.logprobs.sum(1) / beams.lengths
  np.testing.assert_allclose(means, beams.sequences_scores, rtol=1e-5)
  assert beams.sequences_scores[0] >= beams.sequences_scores[1]
  plain = lm.generate(prompts_of(6), max_new_tokens=8)
  assert plain.scores is plain.logits is plain.logprobs is plain.sequences_scores is None


def test_guidance_of_one_prompt_by_hand(lm):
  prompt, negative = prompts_of(7, 3)
  got = new_ids(
    lm.generate([prompt], guidance_scale=2.5, negative_prompt=[negative], max_new_tokens=8)
  )
  so_far = []
  for token in got:
    log, away = (
      np.asarray(jax.nn.log_softmax(lm.logits([ids + so_far])[0, -1])) for ids in (prompt, negative)
    )
    assert token == int(np.argmax(2.5 * (log - away) + away))
    so_far.append(token)


def test_a_user_s_processor(lm):
  def no_odd(history, scores_BxV):
    return jnp.where(jnp.arange(scores_BxV.shape[1]) % 2, -jnp.inf, scores_BxV)

  assert not any(i % 2 for i in new_ids(lm.generate(prompts_of(5), logits_processor=[no_odd])))
  with pytest.raises(UserError, match="logits_processor holds 3, which is not a function"):
    lm.generate("a", logits_processor=[3])


# --- numbers that are not finite ------------------------------------------------------------------


def broken(lm, name="c_fc"):
  params = jax.tree.map(lambda x: x, lm.params)
  kernel = params["blocks"]["layer_1"]["mlp"][name]["kernel"]
  params["blocks"]["layer_1"]["mlp"][name]["kernel"] = kernel.at[0, 3, 5].set(jnp.nan)
  other = engine.LanguageModel(model_io.LoadedModel(lm.config, params), lm.mesh)
  other.tokenizer = lm.tokenizer
  return other


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"do_sample": True},
    {"num_beams": 2},
    {"prompt_lookup_num_tokens": 2},
    {"guidance_scale": 1.5},
  ],
  ids=str,
)
def test_nan_in_one_weight_is_an_error_that_names_it(lm, options):
  with pytest.raises(
    UserError,
    match="logits are not finite: the weight blocks/layer_1/mlp/c_fc/kernel holds NaN",
  ):
    broken(lm).generate([[5, 6, 7], [8]], max_new_tokens=4, **options)


def test_nan_elsewhere(lm):
  with pytest.raises(UserError, match="the weight blocks/layer_1/mlp/c_fc/kernel"):
    list(broken(lm).stream("the dog", max_new_tokens=4))
  with pytest.raises(UserError, match="the assistant's logits are not finite"):
    lm.generate([[5, 6]], assistant_model=broken(lm), do_sample=True, max_new_tokens=8)
  mended = broken(lm).generate([[5, 6]], remove_invalid_values=True, max_new_tokens=4)
  assert mended.lengths[0] >= 1  # as transformers: NaN counts as 0 there
  # An end of text comes before what is not finite is needed: nothing is wrong with that row.
  ended = lm.generate([[5, 6, 7]], max_new_tokens=3, eos_token_id=list(range(280)))
  assert ended.lengths.tolist() == [1]


@pytest.mark.parametrize(
  "options",
  [
    {"suppress_tokens": list(range(280))},
    {"do_sample": True, "temperature": 1e-42},
    {"num_beams": 2, "suppress_tokens": list(range(280))},
    {"prompt_lookup_num_tokens": 2, "suppress_tokens": list(range(280))},
  ],
  ids=["greedy", "sampled", "beams", "speculation"],
)
def test_nothing_to_choose_is_an_error(lm, options):
  with pytest.raises(UserError, match="no token is left to choose"):
    lm.generate([[5, 6]], max_new_tokens=4, **options)


# --- streams --------------------------------------------------------------------------------------


def test_stream(lm):
  for options in ({}, {"do_sample": True, "top_k": 0, "seed": 5}):
    pieces = list(lm.stream("the dog", max_new_tokens=40, **options))
    assert "".join(pieces) == lm.generate("the dog", max_new_tokens=40, **options).texts[0]
    assert len(pieces) > 3
    # A character whose bytes are not all there yet is held back.
    assert not any(piece.endswith("�") for piece in pieces[:-1])


def test_streams_that_cannot_be(lm):
  with pytest.raises(UserError, match="a stream is of one prompt, and there are 2"):
    lm.stream(["a", "b"])
  with pytest.raises(UserError, match="a stream is of one continuation"):
    lm.stream("a", num_beams=2)
