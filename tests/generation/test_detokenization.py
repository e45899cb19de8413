"""The new text of a prompt, at once and in pieces, with decoders of every kind."""

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gptneo_jax import data
from gptneo_jax.data.documents import Document
from gptneo_jax.generation.detokenization import TextStream, new_text, token_bytes
from gptneo_jax.generation.stop_strings import make_stop_table

WORDS = ["[UNK]", "[END]", "the", "dog", "don", "'", "t", "s", ".", ",", "n", "play", "##ing",
         "##s", "he", "!", "?", "ve", "m", "re", "##'", "ll"]  # fmt: skip
PIECES = ["<unk>", "</s>", "▁The", "▁dog", "▁sat", "s", "at", "▁", "▁'", "t", "."]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def wrapped(backend, end, **options):
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, **options)


def word_piece(clean=True, cleanup=True):
  backend = tokenizers.Tokenizer(
    models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
  )
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece(cleanup=cleanup)
  return wrapped(backend, "[END]", clean_up_tokenization_spaces=clean)


def metaspace():
  backend = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(PIECES)}, []))
  backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  return wrapped(backend, "</s>")


def byte_fallback():
  vocabulary = {piece: i for i, piece in enumerate([*PIECES, *BYTES])}
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
     decoders.Strip(" ", 1, 0)]
  )  # fmt: skip
  return wrapped(backend, "</s>")


def byte_level():
  text = "the dog did not mind it. ☂ é 縣 " * 20
  return data.load_tokenizer("train", documents=[Document(text, "", "")], vocab_size=280)


TOKENIZERS = {
  "WordPiece": word_piece,
  "WordPiece, clean-up by one side": lambda: word_piece(cleanup=False),
  "WordPiece without clean-up": lambda: word_piece(clean=False, cleanup=False),
  "Metaspace": metaspace,
  "byte fallback": byte_fallback,
  "byte level": byte_level,
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_pieces_joined_are_the_whole(make):
  """Random ids after random prompts, in pieces of a few tokens."""
  tokenizer = make()
  rng = np.random.default_rng(0)
  V, early = len(tokenizer), 0
  utf8 = tokenizer("縣é☂").input_ids
  for _ in range(400):
    prompt = rng.integers(0, V, rng.integers(0, 6)).tolist()
    # Whole characters among bytes at random.
    ids = [
      *rng.integers(0, V, rng.integers(1, 12)),
      *utf8,
      *rng.integers(0, V, rng.integers(0, 12)),
    ]
    ids = [int(i) for i in ids]
    stream, pieces, step = TextStream(tokenizer, prompt), [], rng.integers(1, 5)
    for n in range(1, len(ids), step):
      pieces.append(stream.push(ids[:n], False))
    early += any(pieces)
    assert all("�" not in piece[-1:] for piece in pieces)
    pieces.append(stream.push(ids, True))
    assert "".join(pieces) == new_text(tokenizer, prompt, ids)
  assert early > 200  # and not all of it at the end


def test_prompt_and_answer_are_decoded_together():
  words = metaspace()
  assert new_text(words, [2, 3], [4]) == " sat" and words.decode([4]) == "sat"
  assert new_text(words, [], [2, 3]) == "The dog"
  pieces = word_piece()
  ids = pieces.convert_tokens_to_ids
  assert new_text(pieces, ids(["the", "dog"]), ids(["don", "'", "t", "play", "##ing", "."])) == (
    " don't playing."
  )
  assert new_text(pieces, ids(["play"]), ids(["##ing"])) == "ing"
  spelled = byte_fallback()
  e7, *rest = [len(PIECES) + byte for byte in "縣".encode()]
  assert new_text(spelled, [2, e7], rest) == "縣"


def test_a_stop_string_spelled_in_bytes():
  tokenizer = byte_fallback()
  spelled = token_bytes(tokenizer)
  assert spelled[len(PIECES) + 0xE7] == b"\xe7" and spelled[3] == b" dog"
  table = make_stop_table(["縣"], spelled)
  state, hits = 0, []
  for byte in "縣".encode():
    hit, state = table.step(np.int32(state), np.int32(len(PIECES) + byte))
    hits.append(bool(hit))
  assert hits == [False, False, True]
