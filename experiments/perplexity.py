"""Perplexity of a checkpoint on a set of documents, by us and by a plain PyTorch loop.

  python experiments/perplexity.py HF_FOLDER 'minipile/test.jsonl.zst' [--stride N] [--documents N]

Both take each document alone, the end of text before it and not scored, in windows of as many
tokens as there are positions, disjoint or each N after the one before, in float32, sums in
float64. Expected: equal to 1e-5 relative.
"""

import argparse
import math
import time

import bench
import torch
import tqdm
import transformers

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.evals import perplexity


def theirs(folder: str, texts: list[str], stride: int | None) -> tuple[float, int]:
  """Nats and tokens of all texts by transformers' eager attention."""
  torch.set_flush_denormal(True)  # else it is tens of times slower on trained weights
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  model = model.float().eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  T = model.config.max_position_embeddings
  nll, count = 0.0, 0
  for text in tqdm.tqdm(texts, desc="transformers", mininterval=5):
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    start = end = 0
    while end < len(ids) - 1:
      new = min(start + T, len(ids) - 1) - end
      end += new
      with torch.no_grad():
        logits_TxV = model(torch.tensor([ids[start:end]])).logits[0]
      targets_N = torch.tensor(ids[end - new + 1 : end + 1])
      losses_N = torch.nn.functional.cross_entropy(logits_TxV[-new:], targets_N, reduction="none")
      nll += losses_N.double().sum().item()
      count += new
      start += stride or T
  return nll, count


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", help="a Hugging Face folder with a tokenizer")
  parser.add_argument("data", help="glob of Pile-format JSON lines")
  parser.add_argument("--stride", type=int, help="default: disjoint windows")
  parser.add_argument("--documents", type=int, default=0, help="0: all")
  args = parser.parse_args()
  config = data.DataConfig(
    source="jsonl", path=args.data, test_path=args.data, tokenizer=args.folder
  )
  documents = list(data.evaluation_documents(config, "test", args.documents))
  lm = gptneo_jax.load(args.folder, dtype="float32")
  T = lm.config.max_position_embeddings
  start = time.perf_counter()
  ours = perplexity.measure(lm, documents, seq_len=T, stride=args.stride)
  between = time.perf_counter()
  nll, count = theirs(args.folder, [document.text for document in documents], args.stride)
  end = time.perf_counter()
  assert ours["all"]["tokens"] == count, "different numbers of tokens"
  reference = math.exp(nll / count)
  bench.record(
    "perplexity" + (f"_stride_{args.stride}" if args.stride else ""),
    {
      "data": args.data.rpartition("/")[2],
      "windows": ours["windows"],
      **{name: ours["all"][name] for name in ("documents", "tokens", "bytes", "bits_per_byte")},
      "longest_document_tokens": max(len(ids) for ids in _ids(lm, documents)),
      # As text: bench rounds numbers to the digits that a measurement of time has.
      "ours": repr(ours["all"]["perplexity"]),
      "transformers": repr(reference),
      "relative_difference": abs(ours["all"]["perplexity"] / reference - 1),
      "seconds": {"ours": between - start, "transformers": end - between},
    },
  )


def _ids(lm, documents):
  for document in documents:
    yield lm.tokenizer(document.text, add_special_tokens=False).input_ids


if __name__ == "__main__":
  main()
