"""Prompts and options that become a request, and those that are refused."""

import numpy as np
import pytest

from gptneo_jax.errors import UserError
from tests.helpers.generated import new_ids, prompts_of


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


def test_negative_prompts_of_each(lm):
  """One each, also where each prompt is continued several times."""
  options = {"guidance_scale": 2.0, "max_new_tokens": 6, "do_sample": True, "top_k": 0}
  prompts, negatives = prompts_of(4, 6), prompts_of(3, 2, seed=5)
  both = lm.generate(prompts, negative_prompt=negatives, num_return_sequences=2, **options)
  for b in range(2):
    alone = lm.generate([prompts[b]], negative_prompt=[negatives[b]], **options)
    assert new_ids(both, 2 * b) == new_ids(alone)


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
