"""Perplexity of a checkpoint on a set of documents, by us and by a plain PyTorch loop.

  python experiments/perplexity.py HF_FOLDER 'minipile/val.jsonl.zst' [--documents N]

Both take each document alone, the end of text before it and not scored, in disjoint windows of as
many tokens as there are positions, in float32, sums in float64. Expected: equal to 1e-5 relative.
"""

import argparse
import json
import math

import bench
import numpy as np
import torch
import tqdm
import transformers

import gptneo_jax
from gptneo_jax import data


def theirs(folder: str, texts: list[str]) -> tuple[float, int]:
  """Nats and tokens of all texts by transformers' eager attention."""
  torch.set_flush_denormal(True)  # else it is tens of times slower on trained weights
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  model = model.float().eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  T = model.config.max_position_embeddings
  nll, count = 0.0, 0
  for text in tqdm.tqdm(texts, desc="transformers", mininterval=5):
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    for start in range(0, len(ids) - 1, T):
      window = torch.tensor(ids[start : start + T + 1])
      with torch.no_grad():
        logits_TxV = model(window[None, :-1]).logits[0]
      losses_T = torch.nn.functional.cross_entropy(logits_TxV, window[1:], reduction="none")
      nll += losses_T.double().sum().item()
      count += len(window) - 1
  return nll, count


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", help="a Hugging Face folder with a tokenizer")
  parser.add_argument("data", help="glob of Pile-format JSON lines")
  parser.add_argument("--documents", type=int, default=0, help="0: all")
  args = parser.parse_args()
  config = data.DataConfig(
    source="jsonl", path=args.data, validation_path=args.data, tokenizer=args.folder
  )
  documents = data.evaluation_documents(config, "validation", args.documents)
  texts = [document.text for document in documents]
  lm = gptneo_jax.load(args.folder, dtype="float32")
  scores = [lm.score([text])[0] for text in tqdm.tqdm(texts, desc="ours", mininterval=5)]
  ours = sum(score.nll for score in scores), sum(score.tokens for score in scores)
  reference = theirs(args.folder, texts)
  assert ours[1] == reference[1], "different numbers of tokens"
  perplexities = [math.exp(nll / count) for nll, count in (ours, reference)]
  bench.record(
    "perplexity",
    {
      "documents": len(texts),
      "tokens": ours[1],
      "bytes": sum(score.bytes for score in scores),
      "ours": perplexities[0],
      "transformers": perplexities[1],
      "relative_difference": float(np.abs(perplexities[0] / perplexities[1] - 1)),
    },
  )
  print(json.dumps({"ours": perplexities[0], "transformers": perplexities[1]}))


if __name__ == "__main__":
  main()
