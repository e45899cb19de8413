"""Greedy and beam search against transformers', token by token.

Where the tokens differ, float64 must say that it was a toss-up: the two best logits are nearer to
each other than transformers' own float32 logits are to the truth.
"""

import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
import torch
import transformers

from gptneo_jax import engine, model_io
from tests.helpers import hf_models, referee

pytestmark = pytest.mark.parity


@functools.cache
def random_pair(name):
  model = {
    "neo": lambda: hf_models.gpt_neo(std=0.3, positions=96, window=9),
    "local first": lambda: hf_models.gpt_neo(("local", "global"), layers=2, std=0.3, positions=96),
    "gpt2": lambda: hf_models.gpt2(std=0.3, positions=96, layers=2),
  }[name]()
  model.config.use_cache = model.generation_config.use_cache = True
  config = hf_models.config_of(model)
  params = jax.tree.map(jax.numpy.asarray, hf_models.to_params(hf_models.tensors(model), config))
  return model, engine.LanguageModel(model_io.LoadedModel(config, params), model_io.first_device())


@pytest.fixture(scope="session")
def trained(shared_data):
  folder = str(shared_data / "checkpoints" / "neo_docs_hf")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager", dtype=torch.float32
  )
  return model.eval(), engine.load(folder)


def theirs(model, prompts, **options):
  """transformers' generate on prompts padded on the left, with the mask."""
  width = max(map(len, prompts))
  ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
  mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
  return model.generate(
    ids, attention_mask=mask, do_sample=False, pad_token_id=0, return_dict_in_generate=True,
    output_scores=True, **options,
  )  # fmt: skip


def is_toss_up(model, row, other, real_from):
  """Whether float64 cannot be told apart, at the first difference of two rows, by float32."""
  place = int(np.flatnonzero(row != other)[0])
  ids_1xT = row[None, real_from:place].astype(int)
  state = {k: v.astype(np.float64) for k, v in hf_models.tensors(model).items()}
  hidden = referee.hidden(state, model.config, ids_1xT)[0, -1]
  truth_V = state["transformer.wte.weight"] @ hidden
  with torch.no_grad():
    rounded_V = model(torch.tensor(ids_1xT)).logits[0, -1].numpy()
  gap = truth_V[row[place]] - truth_V[other[place]]
  return abs(gap) <= 2 * np.abs(rounded_V - truth_V).max()


def assert_same(model, lm, prompts, **options):
  expected = theirs(model, prompts, **options)
  got = lm.generate(prompts, eos_token_id=0, pad_token_id=0, **options)
  rows = expected.sequences.numpy()
  assert got.sequences.shape == rows.shape
  width, each = max(map(len, prompts)), len(rows) // len(prompts)
  for b, (row, other) in enumerate(zip(got.sequences, rows)):
    if (row != other).any():
      assert options.get("num_beams", 1) == 1, f"beams of prompt {b // each} differ"
      assert is_toss_up(model, row, other, width - len(prompts[b])), f"prompt {b} differs"
      print(
        f"a toss-up in float64: prompt {b}, {prompts[b][:8]}…, from column", (row != other).argmax()
      )
  return expected, got


def random_prompts(vocab, count, longest, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, vocab, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def pieces_of_text(lm, shared_data, count, longest, seed=0):
  """Pieces of any length of validation documents, as the tokenizer has them."""
  import json

  import zstandard

  with zstandard.open(shared_data / "minipile" / "val.jsonl.zst", "rt") as file:
    texts = [json.loads(line)["text"][:8000] for line in file]
  rng = np.random.default_rng(seed)
  pieces = []
  for i in rng.integers(0, len(texts), count):
    ids = lm.tokenizer(texts[i]).input_ids
    start = rng.integers(0, max(1, len(ids) - 8))
    pieces.append(ids[start : start + rng.integers(4, longest)])
  return pieces


@pytest.mark.parametrize("name", ["neo", "local first", "gpt2"])
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "min_new_tokens": 3},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 2, "length_penalty": -0.5, "early_stopping": "never"},
  ],
  ids=str,
)
def test_random_models(name, options):
  """Left-padded batches, past the window."""
  model, lm = random_pair(name)
  for seed in range(3):
    prompts = random_prompts(61, 5, 50, seed)
    if "no_repeat_ngram_size" in options:  # transformers would read the padding
      prompts = [(row * 30)[:30] for row in prompts]
    expected, got = assert_same(model, lm, prompts, max_new_tokens=24, **options)
    if "num_beams" in options:
      np.testing.assert_allclose(
        got.sequences_scores, expected.sequences_scores.numpy(), rtol=2e-5, atol=2e-5
      )


@pytest.mark.parametrize("options", [
  {"max_new_tokens": 4}, {"max_length": 16}, {"max_length": 18, "forced_eos_token_id": 3},
  {"min_length": 15}, {"max_length": 15, "num_beams": 3, "num_return_sequences": 2},
  {"forced_bos_token_id": 7}, {"max_length": 16, "guidance_scale": 1.5},
], ids=str)  # fmt: skip
def test_ids_keep_the_width_they_came_in(options):
  """Rows of 2 and 4 tokens in 12 columns: lengths count from 12, and the padding comes back."""
  model, lm = random_pair("neo")
  ids = np.full((2, 12), 60)
  ids[0, -2:], ids[1, -4:] = [5, 6], [7, 8, 9, 10]
  mask = (ids != 60).astype(int)
  if "guidance_scale" in options:  # transformers' negative prompt sees its padding
    ids, mask = ids[1:], mask[1:]
    ids[0, :8] = range(1, 9)
    mask[:] = 1
  end = int(lm.generate(ids, mask, eos_token_id=-1, max_new_tokens=2).sequences[0, 12])
  expected = model.generate(
    torch.tensor(ids), attention_mask=torch.tensor(mask), eos_token_id=end, pad_token_id=59,
    do_sample=False, **options,
  ).numpy()  # fmt: skip
  got = lm.generate(ids, mask, eos_token_id=end, pad_token_id=59, **options)
  np.testing.assert_array_equal(got.sequences, expected)
  each = len(expected) // len(ids)
  for b, row in enumerate(got.sequences[:, ids.shape[1] :]):
    alone = lm.generate(
      [ids[b // each][mask[b // each] == 1].tolist()], eos_token_id=-1, max_new_tokens=1
    )
    if not {"num_beams", "guidance_scale", "min_length"} & set(options):
      assert row[0] == alone.sequences[0, -1]


def test_to_the_last_position():
  for name in ("neo", "gpt2"):
    model, lm = random_pair(name)
    assert_same(model, lm, random_prompts(61, 3, 60), max_length=96)


@pytest.mark.parametrize("batches, batch, longest, options", [
  (14, 8, 80, {"max_new_tokens": 40}),
  (4, 5, 700, {"max_new_tokens": 24}),
  (8, 4, 110, {"max_new_tokens": 16, "num_beams": 3}),
  (4, 3, 300, {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 2,
               "length_penalty": 0.6, "early_stopping": True}),
], ids=str)  # fmt: skip
def test_trained_model(trained, shared_data, batches, batch, longest, options):
  model, lm = trained
  for seed in range(batches):
    assert_same(model, lm, pieces_of_text(lm, shared_data, batch, longest, seed), **options)


def test_trained_model_to_the_last_position(trained, shared_data):
  model, lm = trained
  (prompt,) = pieces_of_text(lm, shared_data, 1, 5)
  assert_same(model, lm, [prompt[:4]], max_length=1024, min_new_tokens=1000)


def test_guidance_and_scores(trained):
  """One prompt and one negative prompt of transformers' own, and the scores it returns."""
  model, lm = trained
  prompt, negative = [[40, 50, 60, 70]], [[5, 6]]
  expected = theirs(
    model, prompt, max_new_tokens=12, guidance_scale=1.8, negative_prompt_ids=torch.tensor(negative)
  )
  got = lm.generate(
    prompt, max_new_tokens=12, guidance_scale=1.8, negative_prompt=negative, output_scores=True
  )
  np.testing.assert_array_equal(got.sequences, expected.sequences.numpy())
  scores = np.stack([x.numpy() for x in expected.scores])
  np.testing.assert_allclose(got.scores, scores, atol=2e-3, rtol=1e-4)


def test_logprobs_are_their_transition_scores(trained):
  model, lm = trained
  prompts = [[40, 50, 60, 70], [9, 8]]
  for options in ({}, {"num_beams": 3}):
    expected = theirs(model, prompts, max_new_tokens=10, **options)
    transitions = model.compute_transition_scores(
      expected.sequences, expected.scores, expected.get("beam_indices"),
      normalize_logits="num_beams" not in options,
    )  # fmt: skip
    got = lm.generate(prompts, max_new_tokens=10, output_logprobs=True, **options)
    np.testing.assert_allclose(got.logprobs, transitions.numpy(), atol=1e-4)


def test_stop_strings_end_where_theirs_do(trained):
  model, lm = trained
  prompts = [lm.tokenizer(text).input_ids for text in ("import os\n", "def main(", "The module")]
  for stop in (["class"], [".p", "le:"], "\n"):
    expected = theirs(model, prompts, max_new_tokens=20, stop_strings=stop, tokenizer=lm.tokenizer)
    got = lm.generate(prompts, max_new_tokens=20, stop_strings=stop)
    np.testing.assert_array_equal(got.sequences, expected.sequences.numpy())
  beams = {"max_new_tokens": 20, "stop_strings": [".p", "le:"], "num_beams": 3}
  expected = theirs(model, prompts, tokenizer=lm.tokenizer, **beams)
  np.testing.assert_array_equal(lm.generate(prompts, **beams).sequences, expected.sequences.numpy())


# --- defaults that a model brings -----------------------------------------------------------------

PROMPT = [5, 6, 7]
# What generation_config.json says (None: no such file), what config.json adds, what the caller
# gives. `END` is the sixth token of the second prompt.
END = object()
DEFAULTS = {
  "no end": ({}, {}, {"max_new_tokens": 12}),
  "one end": ({"eos_token_id": END}, {}, {"max_new_tokens": 12}),
  "several ends": ({"eos_token_id": [0, END]}, {}, {"max_new_tokens": 12}),
  "end and padding": ({"eos_token_id": END, "pad_token_id": 3}, {}, {"max_new_tokens": 12}),
  "an end beyond the table": ({"eos_token_id": 99}, {}, {"max_new_tokens": 12}),
  "the file before config.json": ({"eos_token_id": END}, {"eos_token_id": 1}, {}),
  "config.json alone": (None, {"eos_token_id": END, "repetition_penalty": 1.7}, {}),
  "the file silences config.json": ({}, {"repetition_penalty": 1.7, "max_length": 5}, {}),
  "config.json's task_specific_params": (
    None, {"task_specific_params": {"text-generation": {"max_length": 5, "do_sample": True}}}, {}
  ),
  "the caller's end": ({"eos_token_id": 0}, {}, {"eos_token_id": END}),
  "repetition_penalty": ({"repetition_penalty": 1.7}, {}, {}),
  "the caller's repetition_penalty": ({"repetition_penalty": 1.7}, {}, {"repetition_penalty": 1.0}),
  "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, {}, {}),
  "num_beams": ({"num_beams": 3, "length_penalty": 2.0, "eos_token_id": END}, {}, {}),
  "the caller's num_beams": ({"num_beams": 3, "early_stopping": True}, {}, {"num_beams": 1}),
  "beams and several": ({"num_beams": 3, "num_return_sequences": 2}, {}, {}),
  "max_length": ({"max_length": 9}, {}, {}),
  "max_length beyond the positions": ({"max_length": 999, "eos_token_id": END}, {}, {}),
  "max_new_tokens": ({"max_new_tokens": 4, "max_length": 30}, {}, {}),
  "max_new_tokens over max_length": ({"max_length": 9}, {}, {"max_new_tokens": 8}),
  "min_length": ({"min_length": 9, "eos_token_id": END}, {}, {}),
  "min_length that cannot be": ({"min_length": 9, "eos_token_id": END}, {}, {"max_new_tokens": 4}),
  "min_new_tokens": ({"min_new_tokens": 6, "eos_token_id": END}, {}, {}),
  "suppress_tokens": ({"suppress_tokens": [58, 44]}, {}, {}),
  "begin_suppress_tokens": ({"begin_suppress_tokens": [58]}, {}, {}),
  "bad_words_ids": ({"bad_words_ids": [[58, 58], [44]]}, {}, {}),
  "sequence_bias": ({"sequence_bias": [[[58], -9.0]]}, {}, {}),
  "forced_eos_token_id": ({"forced_eos_token_id": 2, "max_length": 9}, {}, {}),
  "exponential_decay_length_penalty": (
    {"exponential_decay_length_penalty": [2, 1.5], "eos_token_id": 4}, {}, {}
  ),
  "sampling without do_sample": ({"temperature": 0.6, "top_k": 5, "top_p": 0.9}, {}, {}),
  "the caller does not sample": ({"do_sample": True, "top_p": 0.5}, {}, {"do_sample": False}),
  "one token to draw from": ({"do_sample": True, "top_k": 1, "temperature": 0.5}, {}, {}),
  "the caller's top_k": ({"do_sample": True, "top_k": 20}, {}, {"top_k": 1}),
  "other libraries' settings": ({"chat_format": "x", "use_cache": True, "top_k": None}, {}, {}),
}  # fmt: skip

NOTHING_CHANGES = {
  "no end", "an end beyond the table", "the file silences config.json",
  "config.json's task_specific_params", "the caller's end", "the caller's repetition_penalty",
  "the caller's num_beams", "max_new_tokens over max_length", "sampling without do_sample",
  "the caller does not sample", "one token to draw from", "other libraries' settings",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Hugging Face folder without tokenizer; its model and ours; the token that `END` is."""
  path = tmp_path_factory.mktemp("defaults")
  random_pair("neo")[0].save_pretrained(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
  lm = engine.load(str(path))
  end = lm.generate([PROMPT[::-1]], max_new_tokens=6, eos_token_id=-1).sequences[0, -1]
  return path, model, lm, int(end)


@pytest.mark.parametrize("case", DEFAULTS)
def test_a_model_s_defaults_are_obeyed_as_theirs_are(folder, case):
  """The same files beside both: the same tokens, ends and padding."""
  path, model, lm, end = folder
  ended = lambda x: [end if i is END else i for i in x] if isinstance(x, list) else x
  put = lambda fields: {k: end if v is END else ended(v) for k, v in fields.items()}
  file, config, given = (None if fields is None else put(fields) for fields in DEFAULTS[case])
  fields = {**json.loads((path / "config.json").read_text()), "eos_token_id": None, **config}
  with tempfile.TemporaryDirectory() as written:
    place = pathlib.Path(written)
    (place / "config.json").write_text(json.dumps(fields))
    if file is not None:
      (place / "generation_config.json").write_text(json.dumps(file))
    # As from_pretrained does it.
    model.adjust_generation_fn(
      None, False, False, written, None, False, None, True, None, "main", "", False
    )
    kept = {"hf_config.json": json.dumps(fields)}
    if file is not None:
      kept["generation_config.json"] = json.dumps(file)
  mine = engine.LanguageModel(lm._loaded._replace(params=lm.params, kept_files=kept), lm.mesh)
  prompts = torch.tensor([PROMPT, PROMPT[::-1]])
  expected = model.generate(prompts, attention_mask=torch.ones_like(prompts), **given).numpy()
  got = mine.generate(prompts.numpy(), **given)
  np.testing.assert_array_equal(got.sequences, expected)
  if "top_k" not in given:  # which without the file's do_sample is an error
    mine.generation_config = {}
    ignored = mine.generate(prompts.numpy(), **given).sequences
    assert np.array_equal(ignored, expected) == (case in NOTHING_CHANGES)
