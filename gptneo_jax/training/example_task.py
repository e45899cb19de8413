"""A task that learns from labelled examples: all of `tasks.Task` but its loss.

What records, ids and predictions are is in the task's module of `examples`; here they meet the run.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from gptneo_jax import data, examples
from gptneo_jax.examples import splits, task_file
from gptneo_jax.examples.packing import Packing
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec
from gptneo_jax.model import next_token
from gptneo_jax.model.decoder import Decoder
from gptneo_jax.steps import Batch, Loss
from gptneo_jax.training import multihost
from gptneo_jax.training.epochs import settle_steps
from gptneo_jax.training.example_batches import ExampleBatches
from gptneo_jax.training.example_evaluation import ExampleEvaluation
from gptneo_jax.training.prepared import Encoded, Prepared
from gptneo_jax.training.setup import Run


class ExampleTask(abc.ABC):
  """One of the tasks of `examples`; a subclass says what it minimises.

  Attributes:
    NAME: of the module in `examples`.
    HEADS: values of `model.head` that it trains.
    kind: that module.
  """

  NAME: str
  HEADS: tuple[str, ...]
  POSITIONS_RESTART = True
  PRETRAINS = False

  def __init__(self):
    self.kind = examples.find(self.NAME)

  # --- before the start ---------------------------------------------------------------------------

  def check_sources(self, data_config: data.DataConfig) -> None:
    data.check_sources(data_config)

  def prepare(self, run: Run, tokenizer: Any) -> tuple[ConfigDict, Prepared]:
    """Reads and encodes all records; adds the special tokens of the task to the tokenizer."""
    found = self._read(run)
    config = run.asked
    spec = self.kind.settle(found.train, self._spec(run))
    spec = spec.replace(tokens=add_tokens(tokenizer, self.kind.added_tokens(spec)))
    encoder = data.DocumentEncoder(tokenizer)
    encode = functools.partial(self._encode, config, spec, encoder)
    prepared = Prepared(
      spec=spec,
      train=encode(found.train),
      validation=encode(found.validation) if found.validation else None,
      test=encode(found.test) if found.test else None,
      notes=found.notes,
    )
    if not prepared.train.examples:
      raise data.DataError("no training example is left: all are too long")
    settled = config.copy_and_resolve_references().unlock()
    settled.model.update(self.model_settings(config, spec, tokenizer))
    rows = prepared.train.packing.rows
    return settle_steps(settled.lock(), -(-rows // config.batch_size)), prepared

  def _read(self, run: Run) -> splits.Splits:
    return splits.load_splits(run.data_config, self.kind.ROLES, self.kind.key)

  def _spec(self, run: Run) -> TaskSpec:
    config = run.asked
    settings = config.examples.to_dict() | {"label_smoothing": config.label_smoothing}
    for name in ("labels", "problem", "packing"):  # said elsewhere, or of training alone
      del settings[name]
    return TaskSpec(
      task=self.NAME,
      max_tokens=min(config.seq_len, run.model_config.max_position_embeddings),
      row_tokens=config.seq_len,
      on_too_long=config.data.on_too_long,
      columns=config.data.columns,
      labels=tuple(config.examples.labels),
      problem=config.examples.problem,
      settings=settings,
    )

  def _encode(
    self, config: ConfigDict, spec: TaskSpec, encoder: data.DocumentEncoder,
    records: Sequence[Record],
  ) -> Encoded:  # fmt: skip
    made = self.kind.encode(records, spec, encoder, labelled=True)
    return Encoded(records, made, Packing(made, config.seq_len, packed=config.examples.packing))

  def model_settings(self, config: ConfigDict, spec: TaskSpec, tokenizer: Any) -> dict[str, Any]:
    """Settings of model.* that follow from the data: labels, ids of added tokens."""
    vocabulary = max(config.model.vocab_size, 1 + max(spec.tokens.values(), default=0))
    settings: dict[str, Any] = {"vocab_size": vocabulary, "id2label": spec.labels}
    if spec.labels or config.model.head == "sequence_classification":
      settings["num_labels"] = len(spec.labels) or 1  # one: a value, or the score of a choice
    settings["problem_type"] = spec.problem
    if config.model.head == "sequence_classification":
      # Exported, transformers finds the last token of a row by this id; nothing here does.
      pad = tokenizer.pad_token_id
      settings["pad_token_id"] = data.end_of_text_id(tokenizer) if pad is None else pad
    return settings

  def describe_data(self, run: Run, tokenizer: Any) -> str:
    prepared: Prepared = run.prepared
    packing = prepared.train.packing
    tokens = sum(example.length for example in prepared.train.examples)
    full = tokens / (packing.rows * packing.seq_len)
    others = "".join(
      f", {len(part.examples):,} {name}"
      for name, part in (("validation", prepared.validation), ("test", prepared.test))
      if part
    )
    steps = -(-packing.rows // run.config.batch_size)
    lines = [
      f"{len(prepared.train.examples):,} training examples{others}; {tokens:,} tokens in"
      f" {packing.rows:,} rows of {packing.seq_len}, {full:.0%} full: {steps:,} step(s) an epoch",
      *prepared.notes,
    ]
    return "\n".join(lines)

  # --- batches ------------------------------------------------------------------------------------

  def open_batches(self, run: Run, tokenizer: Any) -> ExampleBatches:
    prepared: Prepared = run.prepared
    return ExampleBatches(
      prepared.train.packing,
      self.kind.layout(prepared.spec),
      batch_size=run.config.batch_size,
      seed=run.config.seed,
      rows=multihost.local_rows(run.mesh, run.config.batch_size),
    )

  def batch_shapes(self, run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    config, prepared = run.config, run.prepared
    B, T = config.batch_size, config.seq_len
    # Before the data are read, for the planner: of sequences of 32 tokens.
    E = prepared.train.packing.segments if prepared else max(1, T // 32)
    spec = prepared.spec if prepared else self._spec(run)
    arrays = {
      name: jax.ShapeDtypeStruct((B, T), jnp.int32)
      for name in ("inputs", "segment_ids", "positions")
    }
    for name, column in self.kind.layout(spec).items():
      across = T if column.of == "token" else E
      arrays[name] = jax.ShapeDtypeStruct((B, across, *column.shape), column.dtype)
    return arrays

  # --- loss ---------------------------------------------------------------------------------------

  @abc.abstractmethod
  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    """See `tasks.Task`."""

  def train_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
    return metrics

  # --- evaluation ---------------------------------------------------------------------------------

  def make_evaluation(self, run: Run, tokenizer: Any) -> ExampleEvaluation:
    return ExampleEvaluation(run, self.kind, self.make_loss(run.config, run.module))

  def write_files(self, run: Run, tokenizer: Any, workdir: epath.Path) -> None:
    """task.json, and the tokenizer again where tokens were added to it."""
    task_file.save(workdir, run.prepared.spec)
    if run.prepared.spec.tokens:
      data.save_tokenizer(tokenizer, str(workdir))


class HeadTask(ExampleTask):
  """A task whose head learns from labels; a subclass says by which loss."""

  @abc.abstractmethod
  def head_loss(
    self,
    config: ConfigDict,
    module: Decoder,
    params: Any,
    batch: Batch,
    hidden_BxTxD: jax.Array,
    key: jax.Array | None,
    total: jax.Array,
  ) -> jax.Array:
    """The losses of a batch, each times its weight / `total`, summed.

    hidden_BxTxD: the final hidden states. key: for dropout; None for none.
    """

  def make_loss(self, config: ConfigDict, module: Decoder) -> Loss:
    """The head's, and config.examples.lm_coefficient times that of a language model.

    Metrics: `loss`, the head's; `lm_loss` beside it.
    """
    coefficient = config.examples.lm_coefficient

    def weight_sums(batch: Batch) -> dict[str, jax.Array]:
      sums = {"loss": batch["weights"].sum()}
      if coefficient:
        sums["lm_loss"] = next_token_batch(batch)["weights"].sum()
      return sums

    def share(params: Any, part: Batch, key: jax.Array | None, weight_sums: dict[str, jax.Array]):
      keys = (None, None) if key is None else jax.random.split(key)
      hidden_BxTxD = next_token.hidden_states(module, params, part, keys[0])
      loss = self.head_loss(
        config, module, params, part, hidden_BxTxD, keys[1], weight_sums["loss"]
      )
      if not coefficient:
        return loss, {"loss": loss}
      lm = next_token.loss_of_hidden(
        module, params, hidden_BxTxD, next_token_batch(part), weight_sum=weight_sums["lm_loss"]
      )
      return loss + coefficient * lm.objective, {"loss": loss, "lm_loss": lm.nll}

    return Loss(weight_sums, share)


def next_token_batch(batch: Batch) -> Batch:
  """A packed batch as one of next-token prediction: each token but the last of its segment."""
  segments, ids = batch["segment_ids"], batch["inputs"]
  following = lambda x: jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)
  counts = (segments > 0) & (following(segments) == segments)
  return {**batch, "targets": following(ids), "weights": counts.astype(jnp.float32)}


def add_tokens(tokenizer: Any, tokens: dict[str, str]) -> dict[str, int]:
  """Their ids by role; those that the tokenizer lacks are added to it, as special tokens."""
  tokenizer.add_tokens(list(tokens.values()), special_tokens=True)
  return {role: tokenizer.convert_tokens_to_ids(text) for role, text in tokens.items()}
