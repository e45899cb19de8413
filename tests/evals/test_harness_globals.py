"""Global state that the harness reads is restored after a run."""

import logging
import random

import numpy as np
import pytest

from gptneo_jax.evals import harness, harness_globals
from tests.helpers.tiny_lm import tiny_lm

task = pytest.importorskip("lm_eval.api.task", reason="needs lm-evaluation-harness")
datasets = pytest.importorskip("datasets")


def state():
  _, keys, place, *_ = np.random.get_state()  # noqa: NPY002
  return (
    random.getstate(), (keys.tolist(), place), logging.getLogger("lm_eval").level, task.tqdm,
    datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled(),
  )  # fmt: skip


def draw():
  return random.random(), np.random.random()  # noqa: NPY002


def test_a_run_leaves_no_trace_and_does_not_depend_on_the_generators():
  lm, options = tiny_lm(), {"num_fewshot": 2, "limit": 3, "seed": 7, "log_samples": True}
  random.seed(0)
  before = state()
  first = harness.evaluate_tasks(lm, ["stdlib_cloze"], **options)
  assert state() == before
  random.seed(1)
  assert harness.evaluate_tasks(lm, ["stdlib_cloze"], **options)["samples"] == first["samples"]


def test_seeded_also_restores_after_an_error():
  before = state()
  with harness_globals.seeded(7):
    draws = draw()
  with pytest.raises(ZeroDivisionError), harness_globals.seeded(7):
    assert draw() == draws
    _ = 1 / 0
  assert state() == before


def test_offline_only_while_the_hub_cannot_be_reached(monkeypatch):
  for reachable in (True, False):
    monkeypatch.setattr(harness_globals, "_reachable", lambda address, answer=reachable: answer)
    before = datasets.config.HF_HUB_OFFLINE
    with harness_globals.offline_if_unreachable():
      assert datasets.config.HF_HUB_OFFLINE == (before or not reachable)
    assert datasets.config.HF_HUB_OFFLINE == before
