"""The data pipeline compared with the tokenizer alone: files to batches, tokenized on the fly.

  python experiments/bench_data_pipeline.py
  python experiments/bench_data_pipeline.py --path 'data/*.jsonl.zst' --tokenizer FOLDER_OR_HUB_ID

`ours` is what training reads from, `data.TrainBatches`, opened anew in each round and read for one
epoch: start-up, decompression, JSON, shuffling, tokenizing and packing. The others are the library
`tokenizers` on the same documents in memory, in calls of 4 million characters (longer and shorter
ones were not faster): `encode_batch_fast`, which skips the offsets, and `encode_batch`. Without
--path the text is the standard library's own source, and the tokenizer is trained on it.
"""

import argparse
import time

import bench

from gptneo_jax import data
from gptneo_jax.data.tokenizer import DocumentEncoder

_CALL_CHARACTERS = 1 << 22
_BATCH_SIZE, _SEQ_LEN = 8, 1024


def panels(results):
  title = f"one epoch, {results['tokens'] / 1e6:.1f} million tokens"
  return [bench.Panel(title, "seconds", {"": results["seconds"]})]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--path", default="", help="glob of Pile-format JSON lines")
  parser.add_argument("--tokenizer", default="train", help="hub id or folder; else one is trained")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  config = data.DataConfig(
    source="jsonl" if args.path else "stdlib", path=args.path, tokenizer=args.tokenizer
  )
  tokenizer = data.load_tokenizer(
    args.tokenizer, documents=data.mixed_documents(config), vocab_size=8192
  )
  texts = [document.text for document in data.evaluation_documents(config, "train")]
  encoder = DocumentEncoder(tokenizer)
  tokens = sum(len(ids) + 1 for call in _calls(texts) for ids in encoder.encode(call))
  batches = tokens // (_BATCH_SIZE * (_SEQ_LEN + 1))

  def ours():
    epoch = _open(config, tokenizer)
    for _ in range(batches):
      next(epoch)
    epoch.close()

  def raw(encode_batch):
    return lambda: [len(encode_batch(call, add_special_tokens=False)) for call in _calls(texts)]

  def first_batch():
    start = time.perf_counter()
    epoch = _open(config, tokenizer)
    next(epoch)
    waited = time.perf_counter() - start
    epoch.close()  # not counted
    return waited

  backend = tokenizer.backend_tokenizer
  times = bench.alternate(
    {
      "ours": ours,
      "encode_batch_fast": raw(backend.encode_batch_fast),
      "encode_batch": raw(backend.encode_batch),
    },
    rounds=args.rounds,
  )
  bench.record(
    "bench_data_pipeline",
    {
      "data": args.path.rpartition("/")[2] or "standard library",
      "documents": len(texts),
      "MB_of_text": sum(len(text.encode()) for text in texts) / 1e6,
      "tokens": tokens,
      "vocabulary": len(tokenizer),
      "seconds": times,
      "tokens_per_second": {name: tokens / row["median"] for name, row in times.items()},
      "speed_relative_to_encode_batch_fast": bench.ratio(times, "encode_batch_fast", "ours"),
      "speed_relative_to_encode_batch": bench.ratio(times, "encode_batch", "ours"),
      "seconds_to_first_batch": bench.spread([first_batch() for _ in range(args.rounds)]),
    },
    panels,
  )


def _open(config, tokenizer):
  return data.TrainBatches(config, tokenizer, batch_size=_BATCH_SIZE, seq_len=_SEQ_LEN, seed=0)


def _calls(texts):
  call, size = [], 0
  for text in texts:
    call.append(text)
    size += len(text)
    if size >= _CALL_CHARACTERS:
      yield call
      call, size = [], 0
  yield call


if __name__ == "__main__":
  main()
