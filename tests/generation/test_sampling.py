"""Options that are refused, pipelines, and choices that depend on nothing but their key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.generation import sampling
from gptneo_jax.generation.sampling import GenerationOptions


@pytest.mark.parametrize(
  "options, message",
  [
    ({"temprature": 0.5}, "temprature is not supported; did you mean temperature"),
    ({"num_beam_groups": 2}, "num_beam_groups is not supported; did you mean num_beams"),
    ({"penalty_alpha": 0.6}, "penalty_alpha is not supported"),
    (
      {"do_sample": True, "temperature": 0.0},
      "temperature is 0.0; it must be above 0; .*do_sample",
    ),
    ({"do_sample": True, "temperature": -1}, "temperature is -1"),
    ({"temperature": 0.5}, "temperature is 0.5, and nothing is sampled; set do_sample=True"),
    ({"top_p": 0.5}, "nothing is sampled"),
    ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5; it must be between 0 and 1"),
    ({"do_sample": True, "top_k": -1}, "top_k is -1; it is a whole number, at least 0"),
    ({"do_sample": True, "top_k": 2.5}, "top_k is 2.5"),
    ({"do_sample": "yes"}, "do_sample is 'yes'; it is True or False"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": 5, "max_length": 9}, "both given"),
    ({"min_new_tokens": 5, "min_length": 9}, "both given"),
    ({"length_penalty": 2.0}, "there are no beams; set num_beams"),
    ({"num_beams": 2, "early_stopping": "often"}, "early_stopping is 'often'"),
    ({"num_return_sequences": 2}, "greedy search has one"),
    ({"num_beams": 2, "num_return_sequences": 3}, "more than num_beams"),
    ({"negative_prompt": "a"}, "without a guidance_scale"),
    ({"forced_eos_token_id": 3, "suppress_tokens": [3, 4]}, "in suppress_tokens too"),
    ({"stop_strings": ["a", ""]}, "a stop string is empty"),
    ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, "does not go with num_beams"),
    ({"guidance_scale": 2.0, "num_beams": 2}, "does not go with num_beams"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
    ({"repetition_penalty": "x"}, "repetition_penalty is 'x'; it is a number"),
  ],
)
def test_options_that_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    GenerationOptions.from_dict(options)


def test_none_is_the_default():
  assert GenerationOptions.from_dict({"top_k": None, "eos_token_id": None}) == GenerationOptions()


@pytest.mark.parametrize(
  "options, width, expected",
  [
    ({}, 10, 20),
    ({}, 55, 9),  # the default shrinks to what the model has, as in transformers
    ({"max_new_tokens": 30}, 10, 30),
    ({"max_length": 30}, 10, 20),
  ],
)
def test_number_of_new_tokens(options, width, expected):
  assert GenerationOptions.from_dict(options).new_tokens(width, 64) == expected


@pytest.mark.parametrize(
  "options, width, message",
  [
    ({"max_new_tokens": 60}, 10, "make 70, 6 more than the model's 64 positions"),
    ({"max_length": 65}, 10, "make 65, 1 more"),
    ({}, 64, "make 65, 1 more"),
    ({"max_length": 10}, 10, "max_length is 10, and the prompt alone has 10 tokens"),
    ({"max_new_tokens": 4, "min_new_tokens": 5}, 10, "min_new_tokens is 5, and at most 4"),
  ],
)
def test_lengths_that_do_not_fit(options, width, message):
  with pytest.raises(UserError, match=message):
    GenerationOptions.from_dict(options).new_tokens(width, 64)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"suppress_tokens": [1, 50]}, "suppress_tokens holds 50; the model has ids 0 to 49"),
    ({"bad_words_ids": [[1, -2]]}, "bad_words_ids holds -2"),
    ({"bad_words_ids": [[]]}, "empty sequence"),
    ({"forced_eos_token_id": "x"}, "forced_eos_token_id is 'x'; it is an id or a list of ids"),
  ],
)
def test_ids_that_do_not_exist(options, message):
  with pytest.raises(UserError, match=message):
    sampling.make_pipeline(
      GenerationOptions.from_dict(options), vocab_size=50, eos=(1,), prompt_width=3, max_length=9
    )


def test_values_do_not_compile_again():
  """Another temperature or bias is another value; a processor more is another function."""
  traced = []

  def make(**options):
    return sampling.make_pipeline(
      GenerationOptions.from_dict({"do_sample": True, **options}), vocab_size=50, eos=(1,),
      prompt_width=3, max_length=9,
    )  # fmt: skip

  processors = make(temperature=0.5, top_p=0.5).processors

  @jax.jit
  def run(values, scores_BxV):
    traced.append(1)
    history = sampling.History(jnp.zeros((2, 9), jnp.int32), jnp.zeros(2, jnp.int32), 4, 3)
    return sampling.process_logits(processors, values, history, scores_BxV)

  scores_BxV = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
  pipelines = [make(temperature=t, top_p=p) for t, p in ((0.5, 0.5), (2.0, 0.9))]
  outputs = [run(pipeline.values, scores_BxV) for pipeline in pipelines]
  assert pipelines[0].processors == pipelines[1].processors and len(traced) == 1
  assert (np.isfinite(outputs[0]).sum(), np.isfinite(outputs[1]).sum()) > (1, 1)
  assert np.isfinite(outputs[0]).sum() < np.isfinite(outputs[1]).sum()
  assert make(temperature=0.5).processors != pipelines[0].processors


@pytest.mark.parametrize(
  "options, forms",
  [
    ({}, 0),
    ({"do_sample": True, "top_k": 0}, 0),
    ({"do_sample": True, "temperature": 0.7}, 3),
    ({"do_sample": True, "top_k": 3, "top_p": 0.8}, 3),
    ({"do_sample": True, "top_k": 0, "min_p": 0.1, "temperature": 2.0}, 9),
    ({"repetition_penalty": 1.5, "presence_penalty": 1.0, "min_new_tokens": 2}, 9),
    ({"sequence_bias": [[[4], 2.0], [[1], -9.0]], "do_sample": True}, 9),
    ({"no_repeat_ngram_size": 2, "do_sample": True}, 9),
    ({"sequence_bias": [[[4, 5], 2.0]]}, None),
    ({"typical_p": 0.8, "do_sample": True}, None),
    ({"sequence_bias": [[[i % 50], 0.1] for i in range(301)]}, None),
  ],
)
def test_common_forms(options, forms):
  """Few functions for most combinations of options, which give the scores of those alone."""
  pipeline = sampling.make_pipeline(
    GenerationOptions.from_dict(options), vocab_size=50, eos=(1, 2), prompt_width=3, max_length=9
  )
  common = sampling.common_form(pipeline, 50)
  if forms is None:
    assert common == pipeline
    return
  assert len(common.processors) == forms
  scores_BxV = jax.random.normal(jax.random.key(0), (2, 50))
  ids_BxS = np.random.default_rng(1).integers(0, 50, (2, 9))
  for end in (3, 6, 8):
    history = sampling.History(jnp.asarray(ids_BxS), jnp.zeros(2, jnp.int32), end, 3)
    expected, got = (
      np.asarray(sampling.process_logits(one.processors, one.values, history, scores_BxV))
      for one in (pipeline, common)
    )
    np.testing.assert_array_equal(got, expected)


def test_penalties_of_what_was_generated():
  """OpenAI's: the prompt does not count, an id counts once or each time."""
  history = sampling.History(jnp.array([[0, 3, 4, 7, 7, 3, 9]]), jnp.array([1]), 6, 3)
  pipeline = sampling.make_pipeline(
    GenerationOptions.from_dict({"presence_penalty": 0.5, "frequency_penalty": 0.25}),
    vocab_size=10, eos=(), prompt_width=3, max_length=9,
  )  # fmt: skip
  scores_1xV = jnp.ones((1, 10))
  got = sampling.process_logits(pipeline.processors, pipeline.values, history, scores_1xV)
  expected = np.ones((1, 10))
  expected[0, 7] -= 0.5 + 2 * 0.25
  expected[0, 3] -= 0.5 + 0.25
  np.testing.assert_allclose(got, expected)


def test_a_user_s_processor_comes_before_the_filters():
  seen = []

  def only_even(history, scores_BxV):
    seen.append(scores_BxV)
    return jnp.where(jnp.arange(scores_BxV.shape[1]) % 2 == 0, scores_BxV, -jnp.inf)

  pipeline = sampling.make_pipeline(
    GenerationOptions(do_sample=True, temperature=2.0, top_k=3, logits_processor=(only_even,)),
    vocab_size=10, eos=(1,), prompt_width=1, max_length=9,
  )  # fmt: skip
  scores_BxV = np.arange(10, dtype=np.float32)[None]
  history = sampling.History(np.zeros((1, 9), np.int32), np.zeros(1, np.int32), 1, 1)
  out = np.asarray(
    sampling.process_logits(pipeline.processors, pipeline.values, history, scores_BxV)
  )
  assert np.flatnonzero(np.isfinite(out[0])).tolist() == [4, 6, 8]
  np.testing.assert_array_equal(out[0, [4, 6, 8]], [2, 3, 4])
  np.testing.assert_array_equal(seen[0], scores_BxV)


def test_a_row_s_draw_depends_on_its_key_alone():
  scores_BxV = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 4)
  together = np.asarray(sampling.sample_token(keys, scores_BxV, True))
  alone = [
    int(sampling.sample_token(keys[b : b + 1], scores_BxV[b : b + 1], True)[0]) for b in range(4)
  ]
  assert together.tolist() == alone
  np.testing.assert_array_equal(
    sampling.sample_token(keys, scores_BxV, False), scores_BxV.argmax(-1)
  )
