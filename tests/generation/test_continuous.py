"""Requests that share slots: each gets what it gets alone, whenever it comes and whoever leaves."""

import jax
import numpy as np
import pytest

from gptneo_jax import engine, model_io
from gptneo_jax.errors import UserError
from gptneo_jax.generation import continuous, requests, slots
from gptneo_jax.generation.continuous import Wanted
from gptneo_jax.generation.requests import Prompts
from gptneo_jax.generation.sampling import GenerationOptions
from gptneo_jax.model.matmul import exact_products
from tests.helpers.generated import new_ids, prompts_of
from tests.helpers.text_models import TINY, make, make_tokenizer

# Rows go past the window and past what the rings and the slots hold at first.
LONG = TINY.replace(max_position_embeddings=448, window_size=300)
OPTIONS = (
  {},
  {"do_sample": True, "top_k": 0},
  {"do_sample": True, "temperature": 1.3, "top_p": 0.9},
  {"do_sample": True, "presence_penalty": 0.5, "frequency_penalty": 0.2, "min_p": 0.01},
  {"sequence_bias": [[[7], 2.0], [[9], -3.0]], "repetition_penalty": 1.2, "min_new_tokens": 3},
  {"no_repeat_ngram_size": 2},
  {"do_sample": True, "top_k": 0, "stop_strings": ["e", "o", " ", "th"]},
  {"do_sample": True, "top_k": 0, "eos_token_id": list(range(40))},
  {"do_sample": True, "typical_p": 0.8},  # no common form has it
)


@pytest.fixture(scope="module")
def long_lm():
  return make(LONG, tokenizer=make_tokenizer())


def mixed(count, seed=0):
  """(prompt, seed and options) of some requests, of many lengths."""
  rng = np.random.default_rng(seed)
  # One length for each set of options: `generate` compiles for each pair of the two.
  lengths = [(250, 1, 380, 310, 9, 330, 2, 45, 17)[n % len(OPTIONS)] for n in range(count)]
  for n, prompt in enumerate(prompts_of(*lengths, seed=seed)):
    yield prompt, n % 3, {"max_new_tokens": int(rng.integers(3, 60)), **OPTIONS[n % len(OPTIONS)]}


def request_of(lm, prompt, seed, options):
  settings = GenerationOptions.from_dict(options)
  return requests.make_request(lm, Prompts([prompt], len(prompt)), settings, seed)


@pytest.fixture
def batch(long_lm):
  with jax.set_mesh(long_lm.mesh), exact_products(long_lm.config.dtype):
    yield continuous.ContinuousBatch(long_lm.config, long_lm.unstacked_params, slots=8)


COMPILED = []  # whatever jax compiles in this process


@jax.monitoring.register_event_duration_secs_listener
def _note(event, seconds, **_):
  if event == "/jax/core/compile/backend_compile_duration":
    COMPILED.append(seconds)


def test_each_gets_what_it_gets_alone(long_lm, batch):
  """Different lengths and options, coming one after another, more of them than slots."""
  calls = list(mixed(26))
  rows, counts = [], set()
  for call in calls:
    rows.append(batch.add(request_of(long_lm, *call)))
    batch.advance()
    counts.add(batch._slots.count)
  while not batch.idle:
    batch.advance()
    counts.add(batch._slots.count)
  assert counts == {1, 4, 8}
  for row, (prompt, seed, options) in zip(rows, calls):
    alone = long_lm.generate([prompt], seed=seed, **options)
    assert row.new == new_ids(alone), (len(prompt), options)
  assert {row.ended for row in rows} == {"length", "eos", "stop_string"}


def test_nothing_is_compiled_after_the_warm_up(long_lm, batch):
  """Whatever lengths, seeds and common options come."""
  batch = continuous.ContinuousBatch(long_lm.config, long_lm.unstacked_params, slots=2)
  assert list(batch.warm_up())[-1] == 1.0
  finished(batch, batch.add(request_of(long_lm, [5, 6], 0, {})))  # what makes requests
  before = len(COMPILED)
  assert before
  rng = np.random.default_rng(3)
  for prompt, seed, options in mixed(60, seed=9):
    if "typical_p" not in options:
      more = {"do_sample": True, "temperature": float(rng.uniform(0.5, 2)), "min_p": 0.001}
      chosen = options | (more if rng.random() < 0.5 else {})
      batch.add(request_of(long_lm, prompt, seed, chosen))
    for _ in range(rng.integers(9)):
      batch.advance()
  while not batch.idle:
    batch.advance()
  assert len(COMPILED) == before


def test_those_who_leave_take_nothing_with_them(long_lm, batch):
  rng = np.random.default_rng(1)
  calls = list(mixed(40, seed=2))
  rows = []
  for call in calls:
    rows.append(batch.add(request_of(long_lm, *call)))
    for _ in range(rng.integers(3)):
      batch.advance()
    if rng.random() < 0.6:
      batch.cancel(rows[rng.integers(len(rows))])
  while not batch.idle:
    batch.advance()
  left = [row for row in rows if row.ended == "cancelled"]
  assert 5 < len(left) < 35
  for row, (prompt, seed, options) in zip(rows, calls):
    alone = new_ids(long_lm.generate([prompt], seed=seed, **options))
    assert row.new == (alone[: len(row.new)] if row in left else alone)
  assert batch._rows == [] and batch._reading is None


def test_first_come_first_served_and_long_prompts_do_not_stop_others(long_lm, batch):
  short, long = prompts_of(3, 440)
  first = batch.add(request_of(long_lm, short, 0, {"max_new_tokens": 30}))
  while not first.new:
    batch.advance()
  for _ in range(3):
    batch.add(request_of(long_lm, long, 0, {"max_new_tokens": 2}))
  had = []
  while not batch.idle:
    batch.advance()
    had.append((len(first.new), sum(row is not first for row in batch._rows)))
  # Each advance reads a part of a prompt, and gives the first row a token as well.
  assert [n for n, _ in had[:4]] == [2, 3, 4, 5] and had[1][1] < 3


# --- log-probabilities, and prompts that continue others ------------------------------------------


def finished(batch, row):
  while not row.ended:
    batch.advance()
  return row


def expected_logprobs(lm, ids):
  """Of each token after the first, float32 T-1 x V."""
  return np.asarray(jax.nn.log_softmax(lm.logits([ids])[0]))[:-1]


def test_logprobs_are_the_model_s(long_lm, batch):
  """Of prompts in one piece and in many, of new tokens; whatever the options make of them."""
  asked = Wanted(logprobs=True, prompt_logprobs=True)
  drawn = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 3.0}
  rows = [
    batch.add(request_of(long_lm, prompt, 0, {"max_new_tokens": 7, **options}), asked)
    for prompt, options in zip(prompts_of(1, 2, 64, 65, 300, 441), [{}, drawn] * 3)
  ]
  unscored, greedy = batch.add(request_of(long_lm, [5, 6], 0, {"max_new_tokens": 7})), 0
  for row in rows:
    finished(batch, row)
    log_TxV = expected_logprobs(long_lm, row.prompt + row.new)
    parts = [jax.tree.map(lambda x, n=n: x[:n], part) for part, n in row.prompt_logprobs]
    new = [jax.tree.map(lambda x: x[None], one) for one in row.logprobs]
    got = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts, *new)
    ids = np.array(row.prompt + row.new)[1:]
    np.testing.assert_allclose(got.logprob_N, log_TxV[np.arange(len(ids)), ids], atol=2e-5)
    np.testing.assert_allclose(got.top_NxK, -np.sort(-log_TxV)[:, :20], atol=2e-5)
    picked = np.take_along_axis(log_TxV, got.id_NxK, 1)
    np.testing.assert_allclose(picked, got.top_NxK, atol=2e-5)
    # The likeliest token has the float of the first alternative itself: callers compare the two.
    best = got.id_NxK[:, 0] == ids
    assert (got.logprob_N[best] == got.top_NxK[best, 0]).all()
    greedy += best.sum()
  assert greedy > 20
  assert finished(batch, unscored).logprobs == []


def test_nothing_but_the_prompt(long_lm, batch):
  prompt = prompts_of(70)[0]
  request = request_of(long_lm, prompt, 0, {})._replace(new_tokens=0)
  row = finished(batch, batch.add(request, Wanted(prompt_logprobs=True)))
  assert (row.ended, row.new) == ("length", [])
  assert sum(n for _, n in row.prompt_logprobs) == 69 and batch.idle


def test_a_prompt_that_continues_another_reads_only_what_is_new(long_lm):
  """Turns of a conversation, a question again, one that leaves it: the same text, less read."""
  with jax.set_mesh(long_lm.mesh), exact_products(long_lm.config.dtype):
    batch = continuous.ContinuousBatch(
      long_lm.config, long_lm.unstacked_params, slots=4, kept_bytes=1 << 20
    )
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20}
    ask = lambda prompt: finished(
      batch, batch.add(request_of(long_lm, prompt, 2, options), Wanted(kept=True))
    )
    first, more, other = prompts_of(290, 30, 25)
    said = ask(first)
    for prompt, reused in (
      (first + said.new + more, 290 + 19),  # the last token of the answer had not been run
      (first, 289),
      (first[:-1] + other, 289),
      (first[:270], 0),  # it ends before what is kept does, whose rings are past it
      (first[:270] + other, 269),
    ):
      row = ask(prompt)
      assert row.reused == reused
      assert row.new == new_ids(long_lm.generate([prompt], seed=2, **options))


def test_a_long_list_takes_turns(lm):
  """More prompts than slots: as each alone, with lengths that count columns of the whole batch."""
  prompts = prompts_of(*range(1, 24), 5)
  prompts[-1] = prompts[4]  # the second of the same prompt
  before = slots._forward._cache_size()
  together = lm.generate(prompts, do_sample=True, top_k=0, max_new_tokens=12, seed=5,
                         eos_token_id=[3, 4, 5])  # fmt: skip
  assert slots._forward._cache_size() > before
  for b, prompt in enumerate(prompts[:-1]):
    alone = lm.generate([prompt], do_sample=True, top_k=0, max_new_tokens=12, seed=5,
                        eos_token_id=[3, 4, 5])  # fmt: skip
    assert new_ids(together, b) == new_ids(alone) and together.texts[b] == alone.texts[0]
  assert new_ids(together, 4) != new_ids(together, 23)
  late = lm.generate(prompts, max_length=40, min_length=30, eos_token_id=list(range(200)))
  few = lm.generate(prompts[10:], max_length=40, min_length=30, eos_token_id=list(range(200)))
  assert late.lengths.min() == 8  # the column after the first 30 is the first that may end
  np.testing.assert_array_equal(late.sequences[10:], few.sequences)


def test_faults_of_a_long_list(lm):
  params = jax.tree.map(lambda x: x, lm.params)
  kernel = params["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"]
  params["blocks"]["layer_1"]["mlp"]["c_fc"]["kernel"] = kernel.at[0, 3, 5].set(np.nan)
  broken = engine.LanguageModel(model_io.LoadedModel(lm.config, params), lm.mesh)
  with pytest.raises(UserError, match="not finite: the weight blocks/layer_1/mlp/c_fc/kernel"):
    broken.generate(prompts_of(*[5] * 20), max_new_tokens=4)
  with pytest.raises(UserError, match="no token is left to choose"):
    lm.generate(prompts_of(*[5] * 20), max_new_tokens=4, suppress_tokens=list(range(280)))


def test_what_cannot_take_turns_is_decoded_together(lm):
  prompts = prompts_of(*[6] * 20)
  result = lm.generate(prompts, max_new_tokens=3, output_logprobs=True)
  assert result.logprobs.shape == (20, 3)
  guided = lm.generate(prompts, max_new_tokens=3, guidance_scale=1.5)
  assert new_ids(guided, 7) == new_ids(
    lm.generate(prompts[7:8], max_new_tokens=3, guidance_scale=1.5)
  )
