"""Speculative decoding on a trained checkpoint: guesses kept, and tokens per second against plain.

  python experiments/bench_speculation.py --checkpoint DIR --data VAL.jsonl.zst [--prompts 12]

Greedy, beginnings of validation documents, batch 1. Guesses from the text itself, and from a draft
model, which is the checkpoint's own first half of the layers: no trained smaller one is at hand, so
its figures show the machinery and not what a real draft model gives.
"""

import argparse
import json
import pathlib
import sys

import bench
import jax
import numpy as np
import zstandard

import gptneo_jax
from gptneo_jax import engine, model_io

PROMPT, NEW_TOKENS = 128, 64


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--checkpoint", required=True)
  parser.add_argument("--data", required=True)
  parser.add_argument("--prompts", type=int, default=12)
  args = parser.parse_args()
  lm = gptneo_jax.load(args.checkpoint)
  draft = first_half(lm)
  with zstandard.open(args.data, "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
  prompts = [lm.tokenizer(text[:4000]).input_ids[:PROMPT] for text in texts]
  prompts = [ids for ids in prompts if len(ids) == PROMPT][: args.prompts]
  ways = {
    "plain": {},
    "lookup of 4": {"prompt_lookup_num_tokens": 4},
    "lookup of 10": {"prompt_lookup_num_tokens": 10},
    "draft of 4": {"assistant_model": draft, "num_assistant_tokens": 4},
  }

  def generate(options):
    return [
      lm.generate([ids], max_new_tokens=NEW_TOKENS, eos_token_id=-1, **options) for ids in prompts
    ]

  times = bench.alternate({name: lambda o=o: generate(o) for name, o in ways.items()}, rounds=3)
  plain, results = generate({}), {}
  for name, options in ways.items():
    made = generate(options)
    same = [(a.sequences == b.sequences).all() for a, b in zip(made, plain)]
    results[name] = {
      "identical": float(np.mean(same)),
      "accepted": None if name == "plain" else float(np.mean([x.accepted for x in made])),
      "tokens_per_second": len(prompts) * NEW_TOKENS / times[name]["median"],
      "speedup": times["plain"]["median"] / times[name]["median"],
    }
  bench.record("bench_speculation", results)


def first_half(lm):
  """The model without its last layers."""
  half = lm.config.num_layers // lm.config.period // 2
  config = lm.config.replace(num_layers=half * lm.config.period)
  params = {**lm.params, "blocks": jax.tree.map(lambda x: x[:half], lm.params["blocks"])}
  draft = engine.LanguageModel(model_io.LoadedModel(config, params), lm.mesh)
  draft.tokenizer = lm.tokenizer
  return draft


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  main()
