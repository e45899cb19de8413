"""Bits per byte of what is no neural network, on the documents that a run is evaluated on.

  python experiments/ngram_baseline.py --config configs/tiny.py --tokenizer runs/tiny [--split test]

Byte frequencies of the training split; gzip -9 and xz -9e, each document by itself; and a 5-gram of
the tokenizer's ids with interpolated Kneser-Ney smoothing (Kneser and Ney, 1995; Chen and Goodman,
1998; one discount for each order), counted on the whole training split. For the 5-gram as for the
model a document begins with the end-of-text token. --path: other files, as `data.path`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math

import numpy as np

from gptneo_jax import data
from gptneo_jax.data import Document
from gptneo_jax.training import config_file, parse_config

ORDER = 5


class KneserNey:
  """An n-gram model of ids: the longest n-grams count as often as they are in the text, a shorter
  one as the number of different tokens that came before it."""

  def __init__(self, ids: np.ndarray, vocabulary: int, order: int = ORDER):
    """ids: the training text. vocabulary: ids are below it, and each has some probability."""
    self._vocabulary = vocabulary
    gram, sizes, levels = np.zeros(len(ids) + 1, np.int64), [1], []
    for n in range(1, order + 1):  # gram[i]: the number of the n-gram that begins at i
      keys, first, gram = np.unique(
        gram[:-1] * vocabulary + ids[n - 1 :], return_index=True, return_inverse=True
      )
      levels.append((keys, first, gram))
      sizes.append(len(keys))
    self._orders = []
    for n, (keys, _, gram) in enumerate(levels, 1):
      seen = gram if n == order else gram[levels[n][1] + 1]
      counts = np.bincount(seen, minlength=len(keys))
      once, twice = ((counts == number).sum() for number in (1, 2))
      contexts = keys // vocabulary  # a key is the number of an (n - 1)-gram and an id
      total = np.bincount(contexts, counts, sizes[n - 1])
      types = np.bincount(contexts, counts > 0, sizes[n - 1])
      self._orders.append((keys, counts, once / max(1, once + 2 * twice), total, types))

  def probabilities(self, ids: np.ndarray) -> np.ndarray:
    """Of each id but the first, given those before it."""
    probability = np.full(len(ids) - 1, 1 / self._vocabulary)
    gram = np.zeros(len(ids), np.int64)  # that ends at each place; -1: never seen
    for keys, counts, discount, total, types in self._orders:
      context = np.concatenate([[0 if len(total) == 1 else -1], gram[:-1]])
      wanted = context * self._vocabulary + ids
      place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
      gram = np.where((context >= 0) & (keys[place] == wanted), place, -1)
      count, context = np.where(gram >= 0, counts[gram], 0)[1:], context[1:]
      known = (context >= 0) & (total[context] > 0)
      left = discount * types[context] * probability  # for the shorter n-gram
      backed = (np.maximum(count - discount, 0) + left) / np.where(known, total[context], 1)
      probability = np.where(known, backed, probability)
    return probability


def xz_bits_per_byte(documents: list[Document]) -> float:
  """Bits of xz -9e per byte of text, each document compressed by itself."""
  texts = [document.text.encode() for document in documents]
  preset = 9 | lzma.PRESET_EXTREME
  return 8 * sum(len(lzma.compress(text, preset=preset)) for text in texts) / sum(map(len, texts))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", required=True)
  parser.add_argument("--tokenizer", required=True, help="a run's folder, or any tokenizer's")
  parser.add_argument("--split", default="validation", choices=("validation", "test"))
  parser.add_argument("--path", default="", help="files in place of the config's")
  args = parser.parse_args()
  config = config_file.load(args.config)
  if args.path:
    config.data.path = args.path
  settings = parse_config.read(config).data
  train = list(data.evaluation_documents(settings, "train"))
  documents = list(data.evaluation_documents(settings, args.split))

  tokenizer = data.load_tokenizer(args.tokenizer)
  end = data.end_of_text_id(tokenizer)
  encode = lambda document: [end, *tokenizer(document.text, add_special_tokens=False).input_ids]
  ids = np.concatenate([np.array(encode(document), np.int64) for document in train])
  model = KneserNey(ids, len(tokenizer))
  nats = sum(
    -np.log(model.probabilities(np.array(encode(document), np.int64))).sum()
    for document in documents
  )
  size = sum(len(document.text.encode()) for document in documents)
  print(
    json.dumps(
      {
        "split": args.split,
        "documents": len(documents),
        "bytes": size,
        "byte unigram": data.byte_unigram_bits_per_byte(train, documents),
        "gzip -9": data.gzip_bits_per_byte(documents),
        "xz -9e": xz_bits_per_byte(documents),
        f"{ORDER}-gram": float(nats) / math.log(2) / size,
      },
      indent=1,
    )
  )


if __name__ == "__main__":
  main()
