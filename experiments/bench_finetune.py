"""Steps of fine-tuning on answers, of all parameters and by LoRA, beside transformers and PEFT.

  python experiments/bench_finetune.py            (125M, float32, on a CPU)
  python experiments/bench_finetune.py --data FILE --tokenizer DIR    (instructions of a file too)
  python experiments/bench_finetune.py --small    (does it run? nothing is recorded)

All sides learn from the same examples, of which the answer alone has a loss. `full`: each has
--tokens tokens, the second half the answer, so that nobody has padding. `mixed`: of a sixth of that
to all of it. `file`: instructions in their order, as many as fill --examples rows, encoded by the
recipe `instruct`. Ours packs examples into rows, as train.py does; theirs takes eight at a time
(Trainer's default), filled up to the longest of these, as its collator does, and adds up their
gradients to the one step. AdamW (theirs fused, Trainer's default) and clipping on all sides; LoRA
has rank 8 on all linear layers of the blocks. The sides alternate in one process, STEPS steps a
turn: memory that lies idle during the turns of others costs a virtual machine time when it is used
again. Peak memory is that of a process of its own. On a machine that others use too, `taskset -c 1`
before the command gives each side one thread: PyTorch's threads wait for each other where they
share cores.
"""

import argparse
import json

import bench
import jax
import numpy as np

from gptneo_jax import sharding, state, steps
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.data import DocumentEncoder, load_tokenizer
from gptneo_jax.examples import instruction, splits
from gptneo_jax.examples.packing import Example, Packing
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.model import heads
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import FULL, Method
from gptneo_jax.training import config_file, optimizer, parse_config
from gptneo_jax.training.tasks.lm import next_token_loss

RANK, ALPHA = 8, 16
SIDES = {  # name -> of ours, by LoRA
  "ours": (True, False), "transformers": (False, False),
  "ours, LoRA": (True, True), "PEFT": (False, True),
}  # fmt: skip
PEERS = {"full fine-tuning": ("ours", "transformers"), "LoRA": ("ours, LoRA", "PEFT")}
BATCHES = ("full", "mixed")
STEPS = 2
PER_STEP = 8  # Trainer's per_device_train_batch_size


def draw_examples(kind: str, number: int, tokens: int, vocab_size: int) -> list[Example]:
  rng = np.random.default_rng(0)
  lengths = [tokens] * number if kind == "full" else rng.integers(tokens // 6, tokens + 1, number)
  examples = []
  for length in lengths:
    ids = rng.integers(0, vocab_size, length + 1, np.int32)
    weights = (np.arange(length) >= length // 2).astype(np.float32)
    examples.append(Example((ids[:-1],), {"targets": (ids[1:],), "weights": (weights,)}))
  return examples


def read_examples(path: str, tokenizer: str, rows: int, tokens: int) -> list[Example]:
  """The first of a file that fill as many rows, as `configs/finetune/instruct.py` encodes them."""
  config = config_file.load("configs/finetune/instruct.py").unlock()
  config.data.path, config.seq_len = path, tokens
  found = splits.load_splits(parse_config.read(config).data, instruction.ROLES, instruction.key)
  unsettled = TaskSpec("instruction", tokens, row_tokens=tokens, settings=config.examples.to_dict())
  spec = instruction.settle(found.train, unsettled)
  encoder = DocumentEncoder(load_tokenizer(tokenizer))
  examples = instruction.encode(found.train, spec, encoder, labelled=True)
  ends = np.cumsum([example.length for example in examples])
  number = int(np.searchsorted(ends, rows * tokens, "right"))
  while Packing(examples[:number], tokens, packed=True).rows > rows:
    number -= 1
  return examples[:number]


def ours(config: ModelConfig, examples: list[Example], tokens: int, by_lora: bool):
  mesh, model = sharding.make_mesh(), heads.build(config)
  rule, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig(name="adamw", learning_rate=5e-5, b2=0.999, weight_decay=0.01),
    optimizer.ScheduleConfig(name="constant", warmup_steps=0, decay_steps=1),
  )
  method = Method(LoraConfig(RANK, ALPHA)) if by_lora else FULL
  current = state.init_state(model, rule, mesh, 0, method)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, current)
  step = steps.make_train_step(next_token_loss(model, 0.0), rule, shardings, mesh)
  packing = Packing(examples, tokens, packed=True)
  layout = instruction.layout(TaskSpec("instruction", tokens))
  batch = packing.batch(packing.in_order(), layout)
  batch = steps.place_batch(batch, mesh, packing.rows)

  def call():
    nonlocal current
    current, metrics = step(current, batch)
    return float(metrics["loss"])

  return call


def theirs(config: ModelConfig, examples: list[Example], tokens: int, by_lora: bool):
  import peer
  import torch

  model = peer.gpt_neo(config)
  if by_lora:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]
    model = peft.get_peft_model(
      model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM")
    )
  learned = [p for p in model.parameters() if p.requires_grad]
  rule = torch.optim.AdamW(learned, 5e-5, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
  batches = [
    {name: torch.tensor(rows, device=peer.DEVICE) for name, rows in _padded(part).items()}
    for part in (examples[at : at + PER_STEP] for at in range(0, len(examples), PER_STEP))
  ]
  counted = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)
  model.train()

  def call():
    rule.zero_grad()
    total = 0.0
    for batch in batches:
      loss = model(**batch, num_items_in_batch=counted).loss
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    rule.step()
    return total

  return call


def _padded(examples: list[Example]) -> dict[str, np.ndarray]:
  """What a collator makes of them: the token that a position is to predict is its label's next."""
  length = 1 + max(example.length for example in examples)
  fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
  batch = {name: np.full((len(examples), length), fill, np.int64) for name, fill in fills.items()}
  for row, example in enumerate(examples):
    (ids,), (targets,), (weights,) = (
      example.sequences, example.tokens["targets"], example.tokens["weights"],
    )  # fmt: skip
    T = example.length
    batch["input_ids"][row, : T + 1] = [*ids, targets[-1]]
    batch["attention_mask"][row, : T + 1] = 1
    batch["labels"][row, 1 : T + 1] = np.where(weights > 0, targets, -100)
  return batch


def make(side: str, *args):
  is_ours, by_lora = SIDES[side]
  return (ours if is_ours else theirs)(*args, by_lora)


def two_steps(side: str, *args) -> None:
  """What the memory is measured of."""
  call = make(side, *args)
  call()
  call()


def turn(call):
  def steps_of_a_turn():
    for _ in range(STEPS):
      call()

  return steps_of_a_turn


def measure(config: ModelConfig, examples: list[Example], tokens: int, rounds: int) -> dict:
  memory = {side: bench.peak_memory(two_steps, side, config, examples, tokens) for side in SIDES}
  turns = {side: turn(make(side, config, examples, tokens)) for side in SIDES}
  times = bench.alternate(turns, rounds)
  count = sum(example.length for example in examples)
  return {
    "examples": len(examples),
    "tokens": count,
    "counted_tokens": int(sum(example.tokens["weights"][0].sum() for example in examples)),
    "rows": Packing(examples, tokens, packed=True).rows,
    "seconds": times,
    "peak_MiB": memory,
    "speedup": {
      name: bench.ratio(times, peer, own) for name, (own, peer) in PEERS.items()
    },
    "memory": {
      name: memory[own]["peak"] / memory[peer]["peak"] for name, (own, peer) in PEERS.items()
    },
    "tokens_per_second": {side: STEPS * count / times[side]["median"] for side in SIDES},
  }  # fmt: skip


def panels(results):
  peaks = bench.by_shape(results, "peak_MiB", SIDES)
  return [
    bench.Panel("{steps} steps on rows of {tokens} tokens".format(**results["settings"]), "seconds",
                bench.by_shape(results, "seconds", SIDES), "examples"),
    bench.Panel("peak memory", "MiB", {
      side: {kind: peak["peak"] for kind, peak in row.items()} for side, row in peaks.items()
    }, "examples"),
  ]  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--small", action="store_true", help="a tiny model, nothing recorded")
  parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
  parser.add_argument("--examples", type=int, default=4, help="of a batch; rows, of --data")
  parser.add_argument("--tokens", type=int, default=512, help="of the longest example, and a row")
  parser.add_argument("--batches", nargs="*", default=BATCHES, choices=BATCHES)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--data", default="", help="instructions, for a batch of a file")
  parser.add_argument("--tokenizer", default="openai-community/gpt2", help="for --data")
  args = parser.parse_args()
  config = PRESETS["neo_125m"].replace(remat=args.remat, initializer="hf")
  if args.small:
    config = config.replace(hidden_size=64, num_layers=2, num_heads=2)
  batches = {
    kind: draw_examples(kind, args.examples, args.tokens, config.vocab_size)
    for kind in args.batches
  }
  if args.data:
    batches["file"] = read_examples(args.data, args.tokenizer, args.examples, args.tokens)
  results = {
    kind: measure(config, examples, args.tokens, args.rounds) for kind, examples in batches.items()
  }
  if args.small:
    print(json.dumps({kind: row["speedup"] for kind, row in results.items()}, indent=1))
    return
  settings = {
    "model": "neo_125m",
    "remat": args.remat,
    "tokens": args.tokens,
    "rank": RANK,
    "steps": STEPS,
  }
  bench.record("bench_finetune", {"settings": settings, **results}, panels)


if __name__ == "__main__":
  main()
