"""Fifty steps of a task, ours and PyTorch's: the same weights, examples, order, AdamW and schedule.

transformers never sees a packed row: of each batch its model gets every sequence by itself, or a
padded batch where its own Trainer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from gptneo_jax import model_io, steps
from gptneo_jax.model import heads
from gptneo_jax.state import init_state
from gptneo_jax.training import run_config
from gptneo_jax.training.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from tests.helpers import hf_models

STEPS, WARMUP = 50, 5
RATE, B1, B2, EPS, DECAY, CLIP = 2e-3, 0.9, 0.999, 1e-8, 0.05, 1.0
VOCAB, WINDOW, POSITIONS = 324, 8, 96
PAD = 323  # no text has this id

Batch = Mapping[str, np.ndarray]


def model(family: str, head: str, **options: Any) -> Any:
  """A model of PyTorch's without dropout, whose biases are not 0."""
  cls = hf_models.CLASSES[family][head]
  if family == "gpt_neo":
    options |= {"window": WINDOW, "classifier_dropout": 0.0}
  else:
    options |= {"classifier_dropout": 0.0, "summary_first_dropout": 0.0}
  make = getattr(hf_models, family)
  return make(
    layers=2, hidden=32, heads=2, vocab=VOCAB, positions=POSITIONS, pad_token_id=PAD, cls=cls,
    **options,
  ).train()  # fmt: skip


def our_losses(
  task: Any, hf: Any, batches: Iterable[Batch], **settings: Any
) -> list[dict[str, float]]:
  """The metrics of each step. settings: of the run's config."""
  config = hf_models.config_of(hf).replace(classifier_dropout=0.0, summary_first_dropout=0.0)
  module, mesh = heads.build(config), model_io.first_device()
  asked = run_config.base(config).unlock()
  asked.update_from_flattened_dict(settings)
  optimizer, _ = make_optimizer(
    OptimizerConfig("adamw", RATE, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY, clip_norm=CLIP),
    ScheduleConfig(name="linear", warmup_steps=WARMUP, decay_steps=STEPS, floor=0.0),
  )
  params = jax.tree.map(jnp.array, hf_models.to_params(hf_models.tensors(hf), config))
  state = init_state(module, optimizer, mesh, 0, params=params)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  step = steps.make_train_step(task.make_loss(asked, module), optimizer, shardings, mesh)
  said = []
  for batch in batches:
    state, metrics = step(state, steps.place_batch(dict(batch), mesh, len(batch["inputs"])))
    said.append({name: float(value) for name, value in metrics.items()})
  return said


def their_losses(
  hf: Any, batches: Iterable[Batch], loss_of: Callable[[Any, Batch], torch.Tensor]
) -> list[float]:
  """A loop of PyTorch's own AdamW, of the parameters that Trainer decays, and its schedule."""
  decayed = set(transformers.trainer_pt_utils.get_parameter_names(hf, [torch.nn.LayerNorm]))
  parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
  for name, p in hf.named_parameters():
    parts[name in decayed and not name.endswith("bias")].append(p)
  rule = torch.optim.AdamW(
    [{"params": parts[True], "weight_decay": DECAY}, {"params": parts[False], "weight_decay": 0.0}],
    lr=RATE, betas=(B1, B2), eps=EPS,
  )  # fmt: skip
  schedule = transformers.get_linear_schedule_with_warmup(rule, WARMUP, STEPS)
  losses = []
  for batch in batches:
    loss = loss_of(hf, batch)
    rule.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(hf.parameters(), CLIP)
    rule.step()
    schedule.step()
    losses.append(loss.item())
  return losses


def trainer_losses(hf: Any, examples: list[Any], size: int, folder: Any) -> list[float]:
  """transformers' Trainer over examples in their order, `size` of them padded to a batch.

  examples: dictionaries of `input_ids` and `labels`: of tokens, or of the whole.
  """
  losses: list[float] = []

  class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
      return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any):
      loss = super().training_step(*args, **kwargs)
      losses.append(loss.item())
      return loss

  settings = transformers.TrainingArguments(
    output_dir=str(folder), per_device_train_batch_size=size, max_steps=STEPS, learning_rate=RATE,
    lr_scheduler_type="linear", warmup_steps=WARMUP, weight_decay=DECAY, adam_beta1=B1,
    adam_beta2=B2, adam_epsilon=EPS, max_grad_norm=CLIP, save_strategy="no", report_to=[],
    logging_strategy="no", disable_tqdm=True, use_cpu=True,
  )  # fmt: skip
  InOrder(hf, settings, data_collator=_padded, train_dataset=examples).train()
  return losses


def _padded(examples: list[Any]) -> dict[str, torch.Tensor]:
  ids = [example["input_ids"] for example in examples]
  longest = max(map(len, ids))
  filled = lambda rows, value: torch.tensor(
    np.array([np.pad(row, (0, longest - len(row)), constant_values=value) for row in rows])
  ).long()
  labels = [np.asarray(example["labels"]) for example in examples]
  return {
    "input_ids": filled(ids, PAD),
    "attention_mask": filled([np.ones(len(row), int) for row in ids], 0),
    "labels": filled(labels, -100) if labels[0].ndim else torch.tensor(np.array(labels)),
  }


def same(ours: list[float], theirs: list[float], what: str) -> None:
  """At every step to 1e-3 relative, and something was learned."""
  assert len(ours) == len(theirs) == STEPS
  errors = np.abs(np.array(ours) / np.array(theirs) - 1)
  print(f"{what}: loss {ours[0]:.4f} to {ours[-1]:.4f}, {errors.max():.1e} apart at most")
  assert np.mean(ours[-5:]) < 0.9 * np.mean(ours[:5])
  assert errors.max() <= 1e-3


# --- what stands in a batch -----------------------------------------------------------------------


class Segment(NamedTuple):
  """One sequence of a packed batch."""

  ids: torch.Tensor  # 1 x its length
  row: int
  place: int  # among the sequences of its row
  tokens: np.ndarray  # their places in the row


def sequences(batch: Batch) -> Iterator[Segment]:
  for row, segments in enumerate(batch["segment_ids"]):
    for place in range(segments.max()):
      tokens = np.flatnonzero(segments == place + 1)
      yield Segment(tensor(batch["inputs"][row, tokens]), row, place, tokens)


def tensor(values: Any) -> torch.Tensor:
  """A batch of one, int64."""
  return torch.tensor(np.asarray(values, np.int64)[None])


def mean(weighted: Iterable[tuple[float, torch.Tensor]]) -> torch.Tensor:
  pairs = list(weighted)
  return sum(weight * loss for weight, loss in pairs) / sum(weight for weight, _ in pairs)
