"""Stop strings: the automaton, and the rows and beams that end with them."""

import numpy as np
import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.generation.detokenization import token_bytes
from gptneo_jax.generation.stop_strings import make_stop_table
from tests.helpers.generated import new_ids


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
  without_last = lm.tokenizer.decode(new_ids(stopped)[:-1])
  assert stop not in without_last


def test_stop_strings_end_beams(lm):
  """A beam ends with the token that a stop string ends in, and has it nowhere before."""
  odd = [i for i, b in enumerate(token_bytes(lm.tokenizer)) if not b.isascii() or not b.strip()]
  options = {"max_new_tokens": 12, "eos_token_id": -1, "suppress_tokens": odd, "num_beams": 3}
  options["num_return_sequences"] = 3
  free = lm.generate("the dog", **options)
  stop = lm.tokenizer.decode(new_ids(free)[5:6])
  beams = lm.generate("the dog", stop_strings=stop, **options)
  ended = [text for text in beams.texts if stop in text]
  assert ended and (beams.lengths[: len(ended)] < 12).any()
  for b, text in enumerate(beams.texts):
    assert stop not in lm.tokenizer.decode(new_ids(beams, b)[:-1])
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
