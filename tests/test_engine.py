"""The loaded model: its outputs, whatever the lengths and the padding; scores and texts."""

import copy

import jax
import numpy as np
import pytest
from jax._src.lax import lax

from gptneo_jax import data
from gptneo_jax.errors import UserError
from gptneo_jax.model import forward, heads
from tests.helpers.text_models import TEXT, TINY, make, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
  return make_tokenizer()


@pytest.fixture(scope="module")
def lm(tokenizer):
  return make(tokenizer=tokenizer)


def apply(lm, ids_BxT, method):
  """The module itself, without the engine."""
  run = lambda params: heads.build(lm.config).apply({"params": params}, ids_BxT, method=method)
  return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(lm.params)


def ids(B=2, T=9, seed=0):
  return np.random.default_rng(seed).integers(0, 280, (B, T))


# --- forward passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_asked_for_to_its_own_digits(monkeypatch, dtype):
  """Accelerators would round its products to fewer: whatever is asked, they are told not to."""
  asked = set()
  product = lax.dot_general

  def spy(*args, **options):
    asked.add(jax.config.jax_default_matmul_precision)
    return product(*args, **options)

  for place in (lax, jax.lax):  # jax.numpy's products call the one, ours the other
    monkeypatch.setattr(place, "dot_general", spy)
  jax.clear_caches()
  lm = make(TINY.replace(dtype=dtype), seed=0)
  batch = dict.fromkeys(("inputs", "targets"), ids(2, 8).astype(np.int32))
  uses = {
    "logits": lambda: lm.logits(ids()),
    "predictions": lambda: lm.predictions({**batch, "weights": np.ones((2, 8), np.float32)}),
    "generate": lambda: lm.generate(ids(1, 4), max_new_tokens=2, eos_token_id=-1),
    "beams": lambda: lm.generate(ids(1, 4), max_new_tokens=2, num_beams=2, eos_token_id=-1),
  }
  with jax.default_matmul_precision(None):
    for name, use in uses.items():
      asked.clear()
      use()
      assert asked == {"highest" if dtype == "float32" else None}, name
  asked.clear()
  with jax.default_matmul_precision("tensorfloat32"):  # who says otherwise is obeyed
    lm.logits(ids(T=70))
  assert asked == {"tensorfloat32"}


@pytest.mark.parametrize("T", [1, 9, 65, 96])
def test_logits_are_the_module_s(lm, T):
  """Padding to a bucket inside, up to all positions there are, shows nowhere."""
  expected = apply(lm, ids(T=T), "logits")
  logits = lm.logits(ids(T=T).tolist())
  assert (logits.shape, logits.dtype) == ((2, T, 280), np.float32)
  np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(lm, side):
  lengths, T = [4, 12, 1], 12
  rows, mask = ids(B=3, T=T), np.zeros((3, T), int)
  for b, n in enumerate(lengths):
    mask[b, T - n :] = 1
  if side == "right":
    mask = mask[:, ::-1]
  together = lm.logits(rows, attention_mask=mask)
  states = lm.hidden_states(rows, attention_mask=mask)
  for b in range(3):
    real = mask[b] == 1
    np.testing.assert_allclose(together[b][real], lm.logits(rows[b : b + 1, real])[0], atol=2e-5)
    alone = lm.hidden_states(rows[b : b + 1, real])
    for state, expected in zip(states, alone, strict=True):
      np.testing.assert_allclose(state[b][real], expected[0], atol=2e-5)


def test_position_ids(lm):
  plain = lm.logits(ids())
  np.testing.assert_array_equal(
    plain, lm.logits(ids(), position_ids=np.arange(9)[None].repeat(2, 0))
  )
  moved = lm.logits(ids(), position_ids=np.arange(5, 14)[None].repeat(2, 0))
  assert np.abs(moved - plain).max() > 0.1


def test_hidden_states_end_in_the_logits(lm):
  states = lm.hidden_states(ids())
  assert [x.shape for x in states] == [(2, 9, 16)] * 3
  np.testing.assert_allclose(states[-1] @ lm.params["wte"].T, lm.logits(ids()), atol=1e-5)
  embeddings = lm.params["wte"][ids()] + lm.params["wpe"][None, :9]
  np.testing.assert_allclose(states[0], embeddings, atol=1e-6)


def test_attentions_obey_the_window(lm):
  attentions = lm.attentions(ids(T=20))
  assert [x.shape for x in attentions] == [(2, 2, 20, 20)] * 2
  for x, window in zip(attentions, (20, 6)):
    far = np.subtract.outer(np.arange(20), np.arange(20))
    np.testing.assert_allclose(x.sum(-1), 1, atol=1e-5)
    assert (np.asarray(x)[..., (far < 0) | (far >= window)] == 0).all()


@pytest.mark.parametrize(
  "head, shapes",
  [
    ("sequence_classification", [(2, 3)]),
    ("token_classification", [(2, 9, 3)]),
    ("question_answering", [(2, 9), (2, 9)]),
  ],
)
def test_heads(head, shapes):
  config = TINY.replace(head=head, num_labels=3, pad_token_id=7)
  lm = make(config, seed=0)
  rows = ids()
  rows[0, 5:] = 7
  outputs = lm.logits(rows)
  assert [x.shape for x in jax.tree.leaves(outputs)] == shapes
  expected = apply(lm, rows, "outputs")
  for output, other in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected)):
    np.testing.assert_allclose(output, other, atol=1e-5)
  with pytest.raises(UserError, match="cannot generate: the model's head is"):
    lm.generate([[1, 2]])
  with pytest.raises(UserError, match="cannot score"):
    lm.score(["a"])


def test_double_heads():
  lm = make(TINY.replace(model_type="gpt2", head="double_heads"), seed=0)
  choices = ids(B=6).reshape(3, 2, 9)
  logits, scores = lm.logits(choices)
  assert (logits.shape, scores.shape) == ((3, 2, 9, 280), (3, 2))
  np.testing.assert_array_equal(lm.logits(choices, mc_token_ids=np.full((3, 2), 8))[1], scores)
  other = lm.logits(choices, mc_token_ids=np.full((3, 2), 4))[1]
  np.testing.assert_allclose(other, lm.logits(choices[..., :5])[1], atol=1e-5)


def test_rows_without_padding_id_are_refused_together():
  lm = make(TINY.replace(head="sequence_classification"), seed=0)
  assert lm.logits(ids(B=1)).shape == (1, 2)
  with pytest.raises(UserError, match="2 rows, and the model has no padding token"):
    lm.logits(ids())


@pytest.mark.parametrize(
  "arguments, message",
  [
    (([[1, 280]],), "ids hold 280; the model takes 0 to 279"),
    (([[1, -1]],), "ids hold -1"),
    (([1, 2],), "B x T"),
    ((5,), r"ids have shape \(\); they are B x T"),
    (([],), r"ids have shape \(0,\); they are B x T, of at least one token"),
    (([[]],), r"ids have shape \(1, 0\)"),
    (([[1.5]],), "not an array of whole numbers"),
    (([[1], [1, 2]],), "not an array of whole numbers"),
    ((np.zeros((1, 97), int),), "97 tokens are 1 more than the model's 96 positions"),
    (([[1, 2]], [[1]]), r"attention_mask have shape \(1, 1\)"),
    (([[1, 2]], None, [[0, 96]]), "position_ids hold 96"),
  ],
)
def test_bad_ids_are_refused(lm, arguments, message):
  with pytest.raises(UserError, match=message):
    lm.logits(*arguments)


def test_new_lengths_do_not_recompile(lm):
  lm.logits(ids(T=10))
  before = forward.outputs._cache_size()
  for T in range(1, 64, 7):
    lm.logits(ids(T=T))
  assert forward.outputs._cache_size() == before


# --- texts ----------------------------------------------------------------------------------------


def test_score(lm, tokenizer):
  """Against log-probabilities taken window by window from the logits."""
  texts = ["the dog", "", TEXT[:400], "über <|endoftext|>"]
  encode = data.tokenizer.DocumentEncoder(tokenizer)
  assert len(encode.encode([texts[2]])[0]) > 96  # more than one window
  for text, score in zip(texts, lm.score(texts), strict=True):
    tokens = encode.encode([text])[0]
    inputs, nll = np.concatenate([[encode.end_of_text], tokens[:-1]]), 0.0
    for start in range(0, len(tokens), 96):
      window = slice(start, start + 96)
      log_probs = jax.nn.log_softmax(lm.logits(inputs[None, window]))[0]
      nll -= float(np.asarray(log_probs)[np.arange(len(tokens[window])), tokens[window]].sum())
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert (score.tokens, score.bytes) == (len(tokens), len(text.encode()))


def test_scores_of_another_tokenizer_are_refused(tokenizer):
  """Ids without a row would give NaN."""
  lm = make(TINY.replace(vocab_size=200), seed=0)
  lm.tokenizer = tokenizer
  with pytest.raises(UserError, match="the tokenizer has 280 ids, but the model's vocabulary"):
    lm.score(["the dog"])


def test_generate_is_greedy(lm):
  """Each new token is the likeliest after the row so far, padding or not."""
  prompts = [[5, 6, 7], [9], [8, 8, 8, 8, 8]]
  result = lm.generate(prompts, max_new_tokens=6)
  assert result.sequences.shape == (3, 11)
  end = lm.tokenizer.eos_token_id
  for row, prompt in zip(result.sequences, prompts):
    assert row[5 - len(prompt) : 5].tolist() == prompt
    assert (row[: 5 - len(prompt)] == end).all()
    so_far = list(prompt)
    for token in row[5:]:
      assert token == int(np.argmax(lm.logits([so_far])[0, -1]))
      so_far.append(int(token))
      if token == end:
        break
  padded = np.full((3, 5), 0)
  for row, prompt in zip(padded, prompts):
    row[5 - len(prompt) :] = prompt
  mask = np.arange(5) >= 5 - np.array([[3], [1], [5]])
  again = lm.generate(padded, attention_mask=mask, max_new_tokens=6)
  np.testing.assert_array_equal(again.sequences, result.sequences)


def test_end_of_text_stops_a_row(lm):
  free = lm.generate([[5, 6, 7]], max_new_tokens=6, eos_token_id=-1).sequences[0, 3:]
  stop = int(free[2])
  first = free.tolist().index(stop)
  result = lm.generate([[5, 6, 7]], max_new_tokens=6, eos_token_id=stop, pad_token_id=1)
  assert result.sequences[0, 3:].tolist() == free[: first + 1].tolist()
  with pytest.raises(UserError, match="num_beam is not supported; did you mean num_beams"):
    lm.generate("a", num_beam=4)


def test_without_a_tokenizer():
  lm = make(seed=0)
  assert lm.tokenizer is None
  assert lm.generate([[1, 2]], max_new_tokens=2).texts is None
  with pytest.raises(UserError, match="has no tokenizer"):
    lm.generate("text")


# --- as people try it -----------------------------------------------------------------------------


def test_what_a_tokenizer_returns_goes_in(lm, tokenizer):
  padded = copy.deepcopy(tokenizer)
  padded.pad_token, padded.padding_side = padded.eos_token, "left"
  texts = ["the quick brown fox", "dog"]
  encoded = padded(texts, padding=True, return_tensors="np")
  logits = lm(**encoded)
  np.testing.assert_array_equal(logits, lm.logits(encoded.input_ids, encoded.attention_mask))
  made = lm.generate(**encoded, max_new_tokens=4)
  assert made.texts == lm.generate(texts, max_new_tokens=4).texts
  assert lm.generate(**padded("dog"), max_new_tokens=4).texts == made.texts[1:]
  with pytest.raises(UserError, match="prompts and input_ids are both given"):
    lm.generate("dog", **encoded)
  with pytest.raises(UserError, match="token_type_ids is not supported; tokenizer"):
    lm.generate(**encoded, token_type_ids=encoded.input_ids * 0)
  with pytest.raises(UserError, match=r"and not output_hidden_states; lm\.hidden_states"):
    lm(encoded.input_ids, output_hidden_states=True)


def test_it_says_what_it_is(lm):
  text = repr(lm)
  assert text.startswith("LanguageModel(gpt_neo, 12,512 parameters in float32, 2 layers")
  assert "vocabulary 280" in text and "96 positions" in text and "1 x cpu" in text.lower()


@pytest.mark.parametrize("use", ["logits", "generate", "hidden_states", "__call__"])
def test_under_jit_the_functional_apply_is_named(lm, use):
  with pytest.raises(UserError, match=r"are traced.*heads\.build\(lm\.config\)\.apply"):
    jax.jit(getattr(lm, use))(ids())


def test_functional_apply(lm):
  module = heads.build(lm.config)
  logits = jax.jit(lambda p, x: module.apply({"params": p}, x, method="logits"))(lm.params, ids())
  np.testing.assert_allclose(logits, lm.logits(ids()), atol=2e-5)
  for head in ("sequence_classification", "token_classification", "question_answering"):
    headed = make(TINY.replace(head=head), seed=0)
    with pytest.raises(ValueError, match=r"head is .* next-token logits: .*method='outputs'"):
      heads.build(headed.config).apply({"params": headed.params}, ids(), method="logits")
