"""What quantized weights cost in quality, and give in size and speed.

  python experiments/bench_quant.py --checkpoint DIR --data VAL.jsonl.zst [--windows 64]

Negative log-likelihood of the first windows of the documents, each after an end of text, through
the same functions that decoding runs on; bytes of the weights; tokens per second at batch 1.
"""

import argparse
import functools
import io
import json
import math
import pathlib
import sys
import tempfile

import bench
import jax
import jax.numpy as jnp
import numpy as np
import zstandard

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.generation import cached_forward, kv_cache

ROWS, NEW_TOKENS = 4, 64
MODES = (None, "int8", "w8a8", "int4")


def windows(lm, path: str, count: int) -> np.ndarray:
  """Tokens of whole documents, an end of text before each, cut into rows of T + 1."""
  T, end = lm.config.max_position_embeddings, data.end_of_text_id(lm.tokenizer)
  ids: list[int] = []
  with open(path, "rb") as file:
    lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
    for line in lines:
      ids += [end, *lm.tokenizer(json.loads(line)["text"]).input_ids]
      if len(ids) > count * T:
        break
  rows = (len(ids) - 1) // T
  return np.stack([ids[r * T : r * T + T + 1] for r in range(min(rows, count))])


@functools.partial(jax.jit, static_argnames="config")
def nll(config, unstacked_params, ids_BxT1):
  B, T = ids_BxT1.shape[0], ids_BxT1.shape[1] - 1
  hidden_DxBxT, _ = cached_forward.forward_with_cache(
    config,
    unstacked_params,
    kv_cache.make_cache(config, B, T),
    ids_BxT1[:, :-1],
    0,
    T,
    jnp.zeros(B, jnp.int32),
  )
  logits_NxV = cached_forward.unembed(config, unstacked_params, hidden_DxBxT.reshape(-1, B * T))
  log_NxV = jax.nn.log_softmax(logits_NxV)
  return -jnp.take_along_axis(log_NxV, ids_BxT1[:, 1:].reshape(-1, 1), 1).mean()


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--checkpoint", required=True)
  parser.add_argument("--data", required=True)
  parser.add_argument("--windows", type=int, default=64)
  args = parser.parse_args()
  models = {
    mode or "float32": gptneo_jax.load(args.checkpoint, quantization=mode) for mode in MODES
  }
  rows = windows(models["float32"], args.data, args.windows)
  ids = rows[:1, :64]
  generate = {
    name: lambda lm=lm: lm.generate(ids, max_new_tokens=NEW_TOKENS, eos_token_id=-1)
    for name, lm in models.items()
  }
  times = bench.alternate(generate, rounds=3)
  results = {}
  for name, lm in models.items():
    losses = [
      nll(lm.config, lm.unstacked_params, rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)
    ]
    loss = float(np.mean(losses))
    with tempfile.TemporaryDirectory() as folder:
      lm.save(f"{folder}/model")
      size = sum(f.stat().st_size for f in pathlib.Path(folder).rglob("*") if f.is_file())
      tokenizer = sum(f.stat().st_size for f in pathlib.Path(folder).rglob("token*"))
    results[name] = {
      "loss": loss,
      "perplexity": math.exp(loss),
      "folder_bytes_without_tokenizer": size - tokenizer,
      "tokens_per_second_with_prompt": NEW_TOKENS / times[name]["median"],
    }
  for row in results.values():
    row["perplexity_increase"] = row["perplexity"] / results["float32"]["perplexity"] - 1
  bench.record("bench_quant", {"windows": len(rows), **results})


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  main()
