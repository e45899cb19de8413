"""Run by test_packed_devices.py in a process of 8 CPU devices; prints its findings as JSON.

One step of each task on packed rows: on one device at once, and on two in four parts of which one
counts nothing. By each method too, on eight devices that also split weights and heads.
"""

import json

import jax
import numpy as np
import optax

from gptneo_jax import data, sharding
from gptneo_jax.examples.packing import Packing
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.model import heads
from gptneo_jax.model.lora import LoraConfig
from gptneo_jax.model.methods import FULL, Method
from gptneo_jax.state import TrainState, abstract_state, init_state
from gptneo_jax.steps import make_train_step, place_batch
from gptneo_jax.training import run_config, tasks
from tests.helpers.packed_checks import small_model
from tests.helpers.small_tokenizers import trained_tokenizer

TEXTS = ["the lazy dog", "Olá, mundo: ação", "fox", "The quick brown fox jumps over", "e a ação"]
ROWS, T = 8, 64
TOKENS = {"start": 320, "delimiter": 321, "extract": 322}
SETTINGS = {
  "both_orders": True, "stride": 8, "template": "plain", "loss_on": "answer",
  "max_answer_tokens": 8, "no_answer_threshold": 0.0,
}  # fmt: skip


def records_of(task: str) -> list[Record]:
  fields = {
    "sequence_classification": lambda n, text: {"text": text, "label": "ab"[n % 2]},
    "sentence_pairs": lambda n, text: {"first": text, "second": TEXTS[n % 4], "label": "ab"[n % 2]},
    "multiple_choice": lambda n, text: {
      "question": text, "choices": TEXTS[: 2 + n % 3], "answer": n % 2
    },
    "token_classification": lambda n, text: {
      "tokens": text.split(), "labels": (["B-X", "I-X", "O"] * 9)[: len(text.split())]
    },
    "question_answering": lambda n, text: {
      "question": TEXTS[n % 3], "context": text, "answers": [{"text": text[:3], "answer_start": 0}]
    },
    "instruction": lambda n, text: {"question": text, "answer": TEXTS[n % 3]},
  }[task]  # fmt: skip
  return [Record(fields(n, TEXTS[n % 5] * (1 + n % 2)), f"f:{n}") for n in range(14)]


def batch_of(task):
  """Eight rows, of which the last four hold fewer examples and one part of four none."""
  spec = TaskSpec(
    task.NAME, 48, T, "truncate_left",
    settings=SETTINGS,
  )  # fmt: skip
  records = records_of(task.NAME)
  spec = task.kind.settle(records, spec).replace(tokens=TOKENS)
  made = task.kind.encode(records, spec, data.DocumentEncoder(trained_tokenizer()), labelled=True)
  packing = Packing(made, T, packed=True)
  rows = packing.in_order()[:6]
  rows += [[]] * (6 - len(rows))
  # Part p of four takes rows p and p + 4: the third has neither.
  return spec, packing.batch([*rows[:2], [], *rows[2:5], [], *rows[5:]], task.kind.layout(spec))


METHODS = {
  "all parameters": FULL,
  "LoRA": Method(LoraConfig(rank=2, alpha=4.0)),
  "QLoRA": Method(LoraConfig(rank=2, alpha=4.0, base="int8")),
}
ONE = dict(data=1, fsdp=1, tensor=1)
PARTS, SPLIT = (4, dict(data=2, fsdp=1, tensor=1)), (2, dict(data=2, fsdp=2, tensor=2))


def differences(name: str, method: Method, parts: int, axes: dict[str, int]) -> dict[str, float]:
  """The largest difference of metrics (relative) and of what learns after one step of SGD."""
  task = tasks.find(name)
  spec, rows = batch_of(task)
  fields = {} if spec.labels == () else {"num_labels": len(spec.labels)}
  if name == "multiple_choice":
    fields = {"num_labels": 1}
  model = small_model(task.HEADS[0], 324, problem_type=spec.problem, vocab_multiple=4,
                      classifier_dropout=0.0, **fields)  # fmt: skip
  config = run_config.base(model).unlock()
  if name != "instruction":
    config.examples.lm_coefficient = 0.5
  module, optimizer = heads.build(model), optax.sgd(1.0)
  loss = task.make_loss(config, module)

  def step(parts: int, **axes):
    mesh = sharding.make_mesh(**axes, devices=jax.devices()[: int(np.prod([*axes.values()]))])
    with jax.set_mesh(mesh):
      shapes = abstract_state(module, optimizer, mesh, method)
      shardings: TrainState = jax.tree.map(lambda leaf: leaf.sharding, shapes)
      made = make_train_step(loss, optimizer, shardings, mesh, accumulation=parts)
      state = init_state(module, optimizer, mesh, 0, method)
      state, metrics = made(state, place_batch(rows, mesh, ROWS))
    return jax.device_get((state.params, metrics))

  params, metrics = step(1, **ONE)
  other_params, other_metrics = step(parts, **axes)
  relative = [abs(other_metrics[key] / metrics[key] - 1) for key in metrics]
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), params, other_params)
  return {
    "loss": float(metrics["loss"]),
    "difference": max(*map(float, relative), *jax.tree.leaves(moved)),
  }


if __name__ == "__main__":
  names = [name for name in tasks.names() if name != "lm"]
  found = {name: differences(name, FULL, *PARTS) for name in names}
  for name, method in METHODS.items():
    found[f"instruction, {name}"] = differences("instruction", method, *SPLIT)
  print(json.dumps(found))
