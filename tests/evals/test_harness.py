"""Harness tasks by name: a user's own, local ones, sets; the cache, a mesh, mistakes."""

import collections
import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gptneo_jax import engine
from gptneo_jax.errors import UserError
from gptneo_jax.evals import harness, harness_globals, local_tasks, scoring, task_sets
from tests.helpers import compiling
from tests.helpers.tiny_lm import TEXT, WORDS, tiny_lm

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def lm():
  return tiny_lm()


@pytest.fixture
def own_tasks(tmp_path):
  """Two YAML tasks of a user, one of which has no data."""
  rows = [{"question": f"the {w}", "choices": ["dog", "fox", "at"], "answer": 1} for w in WORDS[:9]]
  (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, file in (("own", "own.jsonl"), ("lost", "lost.jsonl")):
    (tmp_path / f"{name}.yaml").write_text(YAML.format(name=name, file=tmp_path / file))
  return str(tmp_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
  """Tests do not wait for the hub."""
  monkeypatch.setattr(harness_globals, "_reachable", lambda address: False)


def test_own_tasks_and_missing_data(lm, own_tasks):
  """A task without data stops no other; few-shot examples and limits are respected."""
  report = harness.evaluate_tasks(
    lm,
    ["lost", "own"],
    include_path=own_tasks,
    num_fewshot=2,
    limit=5,
    batch_size=4,
    log_samples=True,
  )
  assert "lost.jsonl" in report["missing"]["lost"]
  found = report["samples"]["own"]
  assert len(found) == 5 and report["num_fewshot"] == {"own": 2}
  assert all(item["arguments"][0][0].count("\n\n") == 2 for item in found)
  right = [item["acc"] for item in found]
  assert report["results"]["own"]["acc"] == np.mean(right)
  assert report["results"]["own"]["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / 5**0.5)
  assert report["columns"] == []


def test_cache_belongs_to_the_model(lm, own_tasks, tmp_path, monkeypatch):
  """A second run computes nothing; another model has a cache file of its own."""
  run = lambda lm: harness.evaluate_tasks(
    lm, ["own"], include_path=own_tasks, batch_size=4, cache=str(tmp_path / "answers.sqlite")
  )
  first = run(lm)
  computed = collections.Counter()
  score = scoring.Scorer.score
  count = lambda self, asked: (computed.update(n=len(asked)), score(self, asked))[1]
  monkeypatch.setattr(scoring.Scorer, "score", count)
  assert run(lm)["results"] == first["results"] and not computed
  assert run(tiny_lm(seed=4))["results"] and computed["n"] == 27
  assert len(list(tmp_path.glob("answers-*.sqlite"))) == 2


def test_uniform_model(tmp_path):
  """Each token costs log 280: token perplexity 280; bits per byte follow from the bytes."""
  texts = ["the quick brown fox " * 30, "Zürich 数字"]
  (tmp_path / "pile_test.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  lm = tiny_lm(scale=0)
  report = harness.evaluate_tasks(
    lm, ["pile_local"], task_data=str(tmp_path), batch_size=4, log_samples=True
  )
  found = report["results"]["pile_local"]
  tokens = sum(len(lm.tokenizer(text).input_ids) for text in texts)
  size = sum(len(text.encode()) for text in texts)
  assert found["token_perplexity"] == pytest.approx(280, rel=1e-5)
  assert found["bits_per_byte"] == pytest.approx(math.log2(280) * tokens / size, rel=1e-5)
  assert [item["doc"]["text"] for item in report["samples"]["pile_local"]] == texts


def test_paper_columns(lm, tmp_path):
  """Columns in the published order, filled from local data; tasks without data are missing."""
  rows = [{"text": "the quick brown fox jumps over the lazy dog"}] * 3
  (tmp_path / "lambada_test_3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "wikitext2_test.txt").write_text(TEXT)
  report = harness.evaluate_tasks(
    lm, ["gptneo_paper"], task_data=str(tmp_path), batch_size=4, limit=2
  )
  assert [row["column"] for row in report["columns"]] == [
    "Pile BPB", "Pile PPL", "Wikitext PPL", "LAMBADA PPL", "LAMBADA acc", "Winogrande", "HellaSwag",
    "MathQA", "PubMedQA", "PIQA",
  ]  # fmt: skip
  values = {row["column"]: row["value"] for row in report["columns"]}
  results = report["results"]
  assert values["LAMBADA PPL"] == results["lambada_local"]["perplexity"] > 1
  assert values["LAMBADA acc"] == results["lambada_local"]["acc"]
  assert values["Wikitext PPL"] == results["wikitext_local"]["token_perplexity"]
  assert values["Winogrande"] is None and values["Pile BPB"] is None
  assert report["missing"]["pile_local"].startswith("needs pile_test.jsonl")
  assert set(report["missing"]) == {
    "pile_local", "winogrande", "hellaswag", "mathqa", "pubmedqa", "piqa",
  }  # fmt: skip


def test_every_set_has_its_tasks():
  """Each task of a set exists, and each column's metric is one of its task's."""
  known = local_tasks.names()
  assert set(task_sets.quick_limits()) <= set(known)
  for column in task_sets.paper_columns():
    if column.local:
      metrics = task_sets.read(f"local/{column.local.task}")["metric_list"]
      assert column.local.metric in [metric["metric"] for metric in metrics]


def test_quick_needs_nothing(lm):
  report = harness.evaluate_tasks(lm, ["quick"], batch_size=4, limit=2)
  assert set(report["results"]) == {"stdlib_text", "stdlib_cloze"}
  assert set(report["missing"]) == {"lambada_local", "hellaswag_local", "piqa_local"}
  assert report["results"]["stdlib_text"]["bits_per_byte"] > 0


@pytest.mark.parametrize(
  ("tasks", "options", "message"),
  [
    (["lambada_loca"], {}, "no task 'lambada_loca'; did you mean lambada_local"),
    (["gptneo_papers"], {}, "did you mean gptneo_paper"),
    ([], {}, "no task is named"),
    (["quick"], {"limit": 0}, "limit is 0; it must be at least 1"),
    (["quick"], {"include_path": "nowhere"}, "'nowhere': no such folder"),
  ],
)
def test_mistakes(lm, monkeypatch, tasks, options, message):
  from lm_eval import tasks as lm_eval_tasks

  # Indexing all of the harness' tasks takes 15 seconds.
  small = lambda include_path, **_: real(include_path=include_path, include_defaults=False)
  real = lm_eval_tasks.TaskManager
  monkeypatch.setattr(lm_eval_tasks, "TaskManager", small)
  with pytest.raises(UserError, match=message):
    harness.evaluate_tasks(lm, tasks, **options)


def test_model_that_cannot(lm):
  with pytest.raises(UserError, match="has no tokenizer"):
    harness.evaluate_tasks(
      engine.LanguageModel(lm._loaded._replace(params=lm.params), lm.mesh), ["quick"]
    )


@pytest.mark.processes
def test_on_a_mesh_and_without_torch(lm, own_tasks, tmp_path):
  """Four devices give the numbers of one; PyTorch is never imported."""
  lm.save(str(tmp_path / "saved"))
  expected = harness.evaluate_tasks(
    lm, ["own"], include_path=own_tasks, batch_size=4, log_samples=True
  )
  program = f"""
    import json, sys
    import gptneo_jax
    from gptneo_jax.evals import harness
    from gptneo_jax.sharding import make_mesh
    lm = gptneo_jax.load({str(tmp_path / "saved")!r}, mesh=make_mesh(data=1, fsdp=2, tensor=2))
    report = harness.evaluate_tasks(
      lm, ["own"], include_path={own_tasks!r}, batch_size=3, log_samples=True
    )
    assert "torch" not in sys.modules
    print(json.dumps([item["resps"] for item in report["samples"]["own"]]))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300,
    env=os.environ | compiling.on_devices(4) | {"USE_TORCH": "0"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  for rows, item in zip(found, expected["samples"]["own"], strict=True):
    for row, right in zip(rows, item["resps"], strict=True):
      assert row[0][0] == pytest.approx(right[0][0], abs=2e-4)
