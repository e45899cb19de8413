"""Small folders of token shards."""

import json

from gptneo_jax.data.shard_manifest import SETTINGS
from gptneo_jax.data.token_shards import write_shard

END = 9  # of text


def write(folder, *shards, dtype="uint16", validation=b""):
  """Shards of one file; each is a list of documents."""
  folder.mkdir(exist_ok=True)
  (folder / SETTINGS).write_text(json.dumps({"sources": ["0000-a"]}))
  for number, documents in enumerate(shards):
    write_shard(
      folder, f"0000-a-{number:06d}", documents, validation, source="0000-a", first=10 * number,
      end=10 * number + 10, last=number == len(shards) - 1, dtype=dtype, text_bytes=5,
      end_of_text=END, tokenizer="t", subsets={"s": [1, 2, 3]}, held_out=0,
    )  # fmt: skip
  return folder
