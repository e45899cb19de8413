"""What `lm.generate` and `lm.stream` promise: batches, seeds, ends, streams, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data, engine, model_io
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError
from gptneo_jax.generation import decode
from gptneo_jax.generation.detokenization import token_bytes
from gptneo_jax.generation.stop_strings import make_stop_table

TINY = gptneo_jax.ModelConfig(
  vocab_size=280, max_position_embeddings=96, hidden_size=16, num_layers=2, num_heads=2,
  window_size=6,
)  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. ☂ é " * 20


@pytest.fixture(scope="module")
def lm():
  mesh, rng = model_io.first_device(), np.random.default_rng(3)
  params = jax.tree.map(
    lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
    model_io.abstract_params(TINY, mesh),
  )
  lm = engine.LanguageModel(model_io.Weights(TINY, params), mesh)
  lm.tokenizer = data.load_tokenizer(
    "train", documents=[Document(TEXT, "", "here")], vocab_size=280
  )
  return lm


def prompts_of(*lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, 280, n).tolist() for n in lengths]


def new(result, row=0):
  """The new ids of one row."""
  width = result.sequences.shape[1] - result.lengths.max()
  return result.sequences[row, width : width + result.lengths[row]].tolist()


# --- batches and seeds --------------------------------------------------------------------------

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
    assert new(together, b) == new(alone)
    assert together.texts[b] == alone.texts[0]
  assert len({tuple(new(together, b)) for b in range(3)}) == 3


def test_ids_keep_the_width_they_came_in(lm):
  """Padding in every row is given back, on whichever side it came, and costs no position."""
  short, long = prompts_of(2, 4)
  ids, mask = np.full((2, 90), 7), np.zeros((2, 90), int)
  ids[0, -2:], ids[1, -4:], mask[0, -2:], mask[1, -4:] = short, long, 1, 1
  left = lm.generate(ids, mask, max_new_tokens=10, eos_token_id=-1)
  assert left.sequences.shape == (2, 100)  # 14 positions are used of the model's 96
  np.testing.assert_array_equal(left.sequences[:, :90], ids)
  plain = lm.generate([short, long], max_new_tokens=10, eos_token_id=-1)
  np.testing.assert_array_equal(left.sequences[:, 90:], plain.sequences[:, 4:])
  right = lm.generate(ids[:, ::-1], mask[:, ::-1], max_new_tokens=10, eos_token_id=-1)
  assert right.sequences.shape == (2, 100)
  assert right.sequences[0, 88:90].tolist() == short[::-1]
  with pytest.raises(UserError, match="max_length is 90, and the prompt alone has 90"):
    lm.generate(ids, mask, max_length=90)


def test_seeds(lm):
  draw = lambda **more: lm.generate(  # noqa: E731
    prompts_of(5), do_sample=True, top_k=0, max_new_tokens=12, **more
  )
  assert new(draw(seed=1)) == new(draw(seed=1)) != new(draw(seed=2))
  several = draw(seed=1, num_return_sequences=3)
  assert len(several.sequences) == len({tuple(new(several, b)) for b in range(3)}) == 3
  assert new(several, 0) == new(draw(seed=1))
  same = lm.generate(prompts_of(5) * 2, do_sample=True, top_k=0, max_new_tokens=12, seed=1)
  assert [new(same, b) for b in range(2)] == [new(several, b) for b in range(2)]


def test_no_new_compilation_for_new_lengths(lm):
  """50 prompts of random lengths: no more loops than buffer sizes, two sizes of prompt pieces."""
  functions = (decode._advance, decode._read)
  before = [f._cache_size() for f in functions]
  rng = np.random.default_rng(0)
  for n in rng.integers(1, 80, 50):
    lm.generate([rng.integers(1, 280, n).tolist()], max_new_tokens=int(rng.integers(1, 10)),
                do_sample=True, temperature=float(rng.uniform(0.5, 2)), top_k=7)  # fmt: skip
  loops, reads = (f._cache_size() - b for f, b in zip(functions, before))
  assert loops <= 2 and reads <= 2  # buffers of 64 and 128 columns


# --- ends ---------------------------------------------------------------------------------------


def test_several_ends(lm):
  free = new(lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=-1))
  ends = [free[4], free[7]]
  first = min(free.index(end) for end in ends)
  result = lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=ends, pad_token_id=2)
  assert new(result) == free[: first + 1]


def test_min_new_tokens_and_forced_end(lm):
  free = new(lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=-1))
  late = lm.generate(prompts_of(6), max_new_tokens=12, eos_token_id=free[1], min_new_tokens=9)
  assert late.lengths[0] >= 10 or late.lengths[0] == 12
  assert free[1] not in new(late)[:9]
  forced = new(lm.generate(prompts_of(6), max_length=12, eos_token_id=-1, forced_eos_token_id=5))
  assert len(forced) == 6 and forced[-1] == 5


def test_stop_strings(lm):
  """Ends with the token in which a stop string ends, whatever tokens it is spread over."""
  odd = [i for i, b in enumerate(token_bytes(lm.tokenizer)) if not b.isascii() or not b.strip()]
  options = {"max_new_tokens": 40, "eos_token_id": -1, "suppress_tokens": odd, "do_sample": True}
  text = lm.generate("the dog", **options).texts[0]
  stop = next(
    text[i : i + 3] for i in range(8, len(text) - 3) if text[i : i + 3] not in text[: i + 2]
  )
  stopped = lm.generate(["the dog", "fox"], stop_strings=[stop, "never there at all"], **options)
  assert stop in stopped.texts[0]
  assert text.startswith(stopped.texts[0])
  without_last = lm.tokenizer.decode(new(stopped)[:-1])
  assert stop not in without_last


def test_stop_strings_end_beams(lm):
  """A beam ends with the token that a stop string ends in, and has it nowhere before."""
  odd = [i for i, b in enumerate(token_bytes(lm.tokenizer)) if not b.isascii() or not b.strip()]
  options = {"max_new_tokens": 12, "eos_token_id": -1, "suppress_tokens": odd, "num_beams": 3}
  options["num_return_sequences"] = 3
  free = lm.generate("the dog", **options)
  stop = lm.tokenizer.decode(new(free)[5:6])
  beams = lm.generate("the dog", stop_strings=stop, **options)
  ended = [text for text in beams.texts if stop in text]
  assert ended and (beams.lengths[: len(ended)] < 12).any()
  for b, text in enumerate(beams.texts):
    assert stop not in lm.tokenizer.decode(new(beams, b)[:-1])
    assert stop in text or beams.lengths[b] == 12


def test_stop_table_finds_what_strings_find(lm):
  """Against looking for the strings in the bytes so far, token by token."""
  spelled = token_bytes(lm.tokenizer)
  stops = ["dog", "og,", "the", "é", "☂ é", "  "]
  table = make_stop_table(stops, spelled)
  rng = np.random.default_rng(0)
  likely = [i for i, b in enumerate(spelled) if b.strip() and any(b in s.encode() for s in stops)]
  for _ in range(50):
    ids = rng.choice([*likely, *range(280)], 40)
    prompt, rest = ids[:5], ids[5:]
    state = table.after(prompt)
    text = b"".join(spelled[i] for i in prompt)
    for i in rest:
      before, text = len(text), text + spelled[i]
      expected = any(
        text[end - len(s.encode()) : end] == s.encode()
        for s in stops for end in range(max(before + 1, len(s.encode())), len(text) + 1)
      )  # fmt: skip
      hit, state = table.step(state, i)
      assert bool(hit) == expected
  with pytest.raises(UserError, match="'q☃' can never match"):
    make_stop_table(["q☃"], [b"a", b"b", b"qa"])


# --- what is returned ---------------------------------------------------------------------------


def test_scores_and_logprobs(lm):
  options = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 8}
  result = lm.generate(
    prompts_of(6, 9), output_scores=True, output_logits=True, output_logprobs=True, **options
  )
  assert result.scores.shape == result.logits.shape == (8, 2, 280)
  assert (np.isfinite(result.scores).sum(-1) == 5).all()
  for b, prompt in enumerate(prompts_of(6, 9)):
    ids = new(result, b)
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
  got = new(lm.generate([prompt], guidance_scale=2.5, negative_prompt=[negative], max_new_tokens=8))
  so_far = []
  for token in got:
    log, away = (
      np.asarray(jax.nn.log_softmax(lm.logits([ids + so_far])[0, -1])) for ids in (prompt, negative)
    )
    assert token == int(np.argmax(2.5 * (log - away) + away))
    so_far.append(token)


def test_negative_prompts_of_each(lm):
  """One each, also where each prompt is continued several times."""
  options = {"guidance_scale": 2.0, "max_new_tokens": 6, "do_sample": True, "top_k": 0}
  prompts, negatives = prompts_of(4, 6), prompts_of(3, 2, seed=5)
  both = lm.generate(prompts, negative_prompt=negatives, num_return_sequences=2, **options)
  for b in range(2):
    alone = lm.generate([prompts[b]], negative_prompt=[negatives[b]], **options)
    assert new(both, 2 * b) == new(alone)


def test_a_user_s_processor(lm):
  def no_odd(history, scores_BxV):
    return jnp.where(jnp.arange(scores_BxV.shape[1]) % 2, -jnp.inf, scores_BxV)

  assert not any(i % 2 for i in new(lm.generate(prompts_of(5), logits_processor=[no_odd])))
  with pytest.raises(UserError, match="logits_processor holds 3, which is not a function"):
    lm.generate("a", logits_processor=[3])


def test_beams_count_their_tokens(lm):
  """Also those whose log-probability is exactly 0, being the only choice."""
  only = {"suppress_tokens": [i for i in range(280) if i != 9], "renormalize_logits": True}
  beams = lm.generate(
    [[5, 6]], num_beams=2, max_new_tokens=5, eos_token_id=-1, output_logprobs=True, **only
  )
  assert beams.lengths.tolist() == [5] and new(beams) == [9] * 5
  assert (beams.logprobs == 0.0).all()
  for name in ("output_scores", "output_logits"):
    with pytest.raises(UserError, match=f"{name} is of one token after another"):
      lm.generate([[5, 6]], num_beams=2, **{name: True})


# --- numbers that are none ------------------------------------------------------------------------


def broken(lm, name="c_fc"):
  params = jax.tree.map(lambda x: x, lm.params)
  kernel = params["blocks"]["layer_1"]["mlp"][name]["kernel"]
  params["blocks"]["layer_1"]["mlp"][name]["kernel"] = kernel.at[0, 3, 5].set(jnp.nan)
  other = engine.LanguageModel(model_io.Weights(lm.config, params), lm.mesh)
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


# --- streams ------------------------------------------------------------------------------------


def test_stream(lm):
  for options in ({}, {"do_sample": True, "top_k": 0, "seed": 5}):
    pieces = list(lm.stream("the dog", max_new_tokens=40, **options))
    assert "".join(pieces) == lm.generate("the dog", max_new_tokens=40, **options).texts[0]
    assert len(pieces) > 3
    # A character whose bytes are not all there yet is held back.
    assert not any(piece.endswith("�") for piece in pieces[:-1])


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "prompt, options, message",
  [
    ([], {}, "there is no prompt"),
    ([[1], []], {}, "prompt is empty"),
    ([[1] * 90], {"max_new_tokens": 10}, "make 100, 4 more than the model's 96 positions"),
    ([[1, 280]], {}, "prompts hold 280; the model takes 0 to 279"),
    ("a", {"tempreature": 1}, "tempreature is not supported; did you mean temperature"),
    ("a", {"eos_token_id": 300}, "eos_token_id holds 300"),
    ("a", {"generation_config": {}}, "not supported; give its options by name, or set lm.gen"),
    ("a", {"pad_token_id": 300}, "pad_token_id is 300"),
    ("a", {"guidance_scale": 2.0, "negative_prompt": ["a", "b"]}, "2 negative prompts and 1"),
    ("a", {"stop_strings": ""}, "a stop string is empty"),
    ("a", {"assistant_model": 3}, "assistant_model is not a model"),
    (5, {}, "there is no prompt: prompts are a text, texts, or rows of ids"),
    (None, {}, "there is no prompt"),
    (["a", 5], {}, r"prompts\[1\] is 5, and prompts\[0\] a text"),
    ([[[1, 2]]], {}, "prompts have 3 axes"),
    (["a\ud800"], {}, r"prompts\[0\] is not valid text"),
    ({"input_ids": [[1]]}, {}, r"prompts are a dictionary; write lm.generate\(\*\*tokenizer"),
    ("a", {"min_length": 100, "max_new_tokens": 3}, "min_length is 100, and a prompt of .* make 4"),
    ("a", {"bad_words_ids": [1, 2]}, r"bad_words_ids is \[1, 2\]; it is a list of lists of ids"),
    ("a", {"bad_words_ids": 5}, "bad_words_ids is 5; it is a list of lists"),
    ("a", {"sequence_bias": [[1, 2]]}, "sequence_bias is .*; it is a list of pairs"),
    ("a", {"exponential_decay_length_penalty": [5]}, r"penalty is \[5\]; it is a pair"),
    ("a", {"suppress_tokens": 5}, "suppress_tokens is 5; it is a list of ids"),
    ("a", {"eos_token_id": "x"}, "eos_token_id is 'x'; it is an id or a list"),
    ("a", {"stop_strings": [5]}, r"stop_strings is \[5\]; it is a text or a list"),
    ("a", {"stop_strings": "\ud800"}, "is not valid text"),
  ],
)  # fmt: skip
def test_mistakes(lm, prompt, options, message):
  with pytest.raises(UserError, match=message):
    lm.generate(prompt, **options)


def test_streams_that_cannot_be(lm):
  with pytest.raises(UserError, match="a stream is of one prompt, and there are 2"):
    lm.stream(["a", "b"])
  with pytest.raises(UserError, match="a stream is of one continuation"):
    lm.stream("a", num_beams=2)


# --- speculation --------------------------------------------------------------------------------


def smaller(lm, noise):
  """A model that says nearly the same, as a draft model should."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + (noise * rng.standard_normal(x.shape)).astype(x.dtype), lm.params
  )
  draft = engine.LanguageModel(model_io.Weights(lm.config, params), lm.mesh)
  draft.tokenizer = lm.tokenizer
  return draft


def test_speculation_is_greedy_search(lm):
  """Whatever the guesses: good, bad, looked up; past the window, and up to an end."""
  prompts = [*prompts_of(3, 40), [5, 6, 7, 5, 6, 7, 5, 6]]
  plain = {"max_new_tokens": 50, "repetition_penalty": 1.1}
  end = new(lm.generate(prompts, **plain), 1)[20]
  for more in ({"eos_token_id": -1}, {"eos_token_id": end}):
    expected = lm.generate(prompts, **plain, **more)
    for guesses in (
      {"assistant_model": smaller(lm, 0.003), "num_assistant_tokens": 4},
      {"assistant_model": smaller(lm, 1.0), "num_assistant_tokens": 4},
      {"prompt_lookup_num_tokens": 4},
    ):
      got = lm.generate(prompts, **plain, **more, **guesses)
      assert [new(got, b) for b in range(3)] == [new(expected, b) for b in range(3)]
      assert got.accepted <= 1
  good = lm.generate(prompts, **plain, assistant_model=smaller(lm, 0.003))
  bad = lm.generate(prompts, **plain, assistant_model=smaller(lm, 1.0))
  assert good.accepted > 0.5 > bad.accepted


def test_what_is_no_guess_is_not_accepted(lm):
  """Few of 16 places hold guesses: the others hold id 0, which is what the model makes."""
  options = {"suppress_tokens": list(range(1, 280)), "eos_token_id": -1, "max_new_tokens": 40}
  got = lm.generate([[5, 6, 7]], prompt_lookup_num_tokens=16, **options)
  assert new(got) == [0] * 40
  assert got.accepted == 1.0  # whatever was proposed was a repetition of 0
  none = lm.generate([[5, 6, 7]], prompt_lookup_num_tokens=4, max_new_tokens=1)
  assert none.accepted == 0.0


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_speculation_draws_from_the_same_distribution(lm, kind):
  """Chi-square over the second and third new token of many draws, against the model's own."""
  from scipy import stats

  prompt = [5, 6, 7, 8, 5, 6]
  options = {"do_sample": True, "top_k": 3, "temperature": 1.5, "max_new_tokens": 3}
  guesses = (
    {"assistant_model": smaller(lm, 0.1), "num_assistant_tokens": 2}
    if kind == "draft" else {"prompt_lookup_num_tokens": 2}
  )  # fmt: skip
  N = 200
  got = lm.generate([prompt] * N, eos_token_id=-1, **options, **guesses)
  plain = lm.generate([prompt] * 6 * N, eos_token_id=-1, seed=1, **options)
  for place in (-3, -2, -1):
    values = np.unique(plain.sequences[:, place])
    table = [(x.sequences[:, place, None] == values).sum(0) for x in (got, plain)]
    assert sum(table[0]) >= N - 2  # nothing that the model would not say
    often = table[1] >= 20
    assert stats.chi2_contingency([row[often] for row in table]).pvalue > 1e-3
