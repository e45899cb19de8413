"""What an error says: the name that may have been meant, or none; the first line of its cause."""

import pytest

from gptneo_jax.errors import did_you_mean, first_line
from gptneo_jax.training import config_file, run_config


@pytest.fixture(scope="module")
def settings(repository):
  return run_config.flat(config_file.load(str(repository / "configs/tiny.py")))


@pytest.mark.parametrize(
  ("name", "meant"),
  [
    ("optimizer.lr", "optimizer.learning_rate"),
    ("optimizer.learning_rat", "optimizer.learning_rate"),
    ("optimiser.learning_rate", "optimizer.learning_rate"),
    ("lr", "optimizer.learning_rate"),
    ("optimizer.beta2", "optimizer.b2"),
    ("optimizer.steps", "steps"),
    ("batchsize", "batch_size"),
    ("batch-size", "batch_size"),
    ("batch", "batch_size"),
    ("eval.batchsize", "eval.batch_size"),
    ("grad_accumulaton", "grad_accumulation"),
    ("gradient_accumulation_steps", "grad_accumulation"),
    ("eval.docments", "eval.documents"),
    ("num_layers", "model.num_layers"),
    ("model.n_layer", "model.num_layers"),
    ("seqlen", "seq_len"),
    ("block_size", "seq_len"),
    ("data.textkey", "data.text_key"),
    ("schedule.warmup", "schedule.warmup_steps"),
    # Far from everything: no suggestion is better than one that misleads.
    ("optimizer.b3", None),
    ("optimizer.momentum", None),
    ("model.rotary_dim", None),
    ("data.zzz", None),
    ("zzz", None),
  ],
)
def test_settings(name, meant, settings):
  expected = f"; did you mean --config.{meant}?" if meant else ""
  assert did_you_mean(name, settings, "--config.{}") == expected


def test_no_names_no_suggestion():
  assert did_you_mean("lr", []) == ""
  assert did_you_mean("text", ["a sentence ...", "label"]) == ""  # a column of a table


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (ValueError("one\ntwo"), "one"),
    (OSError(" \n first \n"), "first"),
    (KeyError(), "KeyError"),
    (RuntimeError("  "), "RuntimeError"),
  ],
)
def test_first_line(error, line):
  assert first_line(error) == line
