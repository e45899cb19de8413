"""A task of another kind than language modelling: is the last id of a row even?

Rows are drawn at random; a row of weight 0 is padding. The head is sequence classification's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gptneo_jax import data, steps
from gptneo_jax.training import multihost

HEADS = ("sequence_classification",)
POSITIONS_RESTART = False
PRETRAINS = False
ROWS = 24  # of an evaluation, in batches of batch_size


def check_sources(data_config):
  if data_config.path == "missing":
    raise data.DataError("missing: no such rows")


def describe_data(run, tokenizer):
  return "training data: rows at random, without end"


def prepare(run, tokenizer):
  return run.asked, None


def write_files(run, tokenizer, workdir):
  pass


def batch_shapes(run):
  config = run.config
  shape = (config.batch_size, config.seq_len)
  return {
    "inputs": jax.ShapeDtypeStruct(shape, jnp.int32),
    "labels": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    "weights": jax.ShapeDtypeStruct(shape[:1], jnp.float32),
  }


def draw(config, step):
  chance = np.random.default_rng([config.seed, step])
  ids_BxT = chance.integers(
    1, config.model.vocab_size, (config.batch_size, config.seq_len), np.int32
  )
  return {
    "inputs": ids_BxT,
    "labels": ids_BxT[:, -1] % 2,
    # Fewer in the first rows than in the last: parts of a batch weigh differently.
    "weights": (chance.random(config.batch_size) < np.linspace(0.3, 1, config.batch_size)).astype(
      np.float32
    ),
  }


class Batches:
  def __init__(self, run):
    self._config = run.config
    self._rows = multihost.local_rows(run.mesh, run.config.batch_size)
    self._step, self.wait_seconds, self.closed = 0, 0.0, False

  def __iter__(self):
    return self

  def __next__(self):
    self._step += 1
    return {name: x[self._rows] for name, x in draw(self._config, self._step).items()}

  @property
  def epochs(self):
    return {"rows": 0.0}

  def get_state(self):
    fingerprint = {"seed": self._config.seed, "seq_len": self._config.seq_len}
    return {"fingerprint": fingerprint, "streams": {"0": {"step": self._step}}}

  def set_state(self, state):
    if state["fingerprint"] != self.get_state()["fingerprint"]:
      raise data.DataError("other rows")
    self._step = state["streams"]["0"]["step"]

  def close(self):
    self.closed = True


def open_batches(run, tokenizer):
  return Batches(run)


def make_loss(config, module):
  def share(params, part, key, weight_sum):
    logits_BxC = module.apply({"params": params}, part["inputs"], method="outputs")
    log_BxC = jax.nn.log_softmax(logits_BxC)
    nll_B = -jnp.take_along_axis(log_BxC, part["labels"][:, None], axis=1)[:, 0]
    correct_B = logits_BxC.argmax(-1) == part["labels"]
    weights_B = part["weights"] / weight_sum
    loss = (nll_B * weights_B).sum()
    return loss, {"loss": loss, "accuracy": (correct_B * weights_B).sum()}

  return steps.Loss(lambda batch: batch["weights"].sum(), share)


def train_metrics(metrics):
  return metrics


class Evaluation:
  measures = True

  def at_end(self, params, workdir):
    return None

  def __init__(self, run):
    self._run, loss = run, make_loss(run.config, run.module)

    def measure(params, batch):
      return loss.share(params, batch, None, batch["weights"].sum())[1]

    self._measure = steps.make_eval_step(measure, run.param_shardings, run.mesh)

  def __call__(self, params, stop=lambda: False):
    config, found = self._run.config, []
    for number in range(ROWS // config.batch_size):
      if stop():
        return None
      rows = draw(config, 10**6 + number)
      own = multihost.local_rows(self._run.mesh, config.batch_size)
      batch = steps.place_batch(
        {name: x[own] for name, x in rows.items()}, self._run.mesh, config.batch_size
      )
      found.append(jax.device_get(self._measure(params, batch)))
    metrics = {
      f"eval/{name}": float(np.mean([each[name] for each in found]))
      for name in ("loss", "accuracy")
    }
    return metrics, f"accuracy {metrics['eval/accuracy']:.2f}"


def make_evaluation(run, tokenizer):
  return Evaluation(run)
