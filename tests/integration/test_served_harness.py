"""lm-eval's `local-completions` over the server scores as our harness does in process.

A server that returns the generated token alone makes lm-eval score chance, without an error
(ggml-org/llama.cpp#27174).
"""

import importlib
import json

import pytest

from gptneo_jax import data
from gptneo_jax.evals import harness, harness_globals
from tests.helpers.served import serving
from tests.helpers.small_models import random_lm
from tests.helpers.tiny_lm import TINY, WORDS, tiny_lm

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
pytest.importorskip("aiohttp", reason="local-completions of lm-eval needs it")

POSITIONS = 384  # lm-eval cuts prompts a token earlier than a model has to, so none is cut
CHOICES = """
task: choices
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
LAST_WORDS = """
task: last_words
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
SOURCE = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
"""


@pytest.fixture(scope="module")
def lm():
  config = TINY.replace(max_position_embeddings=POSITIONS)
  return random_lm(config, tiny_lm().tokenizer, scale=0.3, seed=3)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tasks")
  rows = {
    "choices": [
      {"question": f"the {w}", "choices": ["dog", "fox jumps", "at"], "answer": 1}
      for w in WORDS[:12]
    ],
    "last_words": [{"text": " ".join(WORDS[n : n + 6 + n])} for n in range(12)],
  }
  for name, yaml in (("choices", CHOICES), ("last_words", LAST_WORDS)):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    (folder / f"{name}.yaml").write_text(yaml + SOURCE.format(file=file))
  return str(folder)


def samples(report, task):
  """(log-likelihood, greedy) of each request, in the order of the documents."""
  found = sorted(report["samples"][task], key=lambda item: item["doc_id"])
  return [
    (float(logprob), str(greedy) == "True")
    for item in found
    for response in item["resps"]
    for logprob, greedy in [response[0] if isinstance(response[0], (list, tuple)) else response]
  ]


@pytest.mark.processes
def test_it_scores_as_in_process(lm, tasks, tmp_path, monkeypatch):
  monkeypatch.setattr(harness_globals, "_reachable", lambda address: False)
  folder = str(tmp_path / "tiny")
  lm.save(folder)
  data.save_tokenizer(lm.tokenizer, folder)
  names = ["choices", "last_words"]
  with serving(folder, "--slots", "2") as served:
    for shots in (0, 2):
      manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=tasks)
      over = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
          "base_url": f"{served.url}/v1/completions", "model": "tiny", "num_concurrent": 3,
          "tokenizer_backend": "remote", "max_length": POSITIONS,
        },
        tasks=names, task_manager=manager, num_fewshot=shots, batch_size=4, log_samples=True,
        bootstrap_iters=0, fewshot_random_seed=0,
      )  # fmt: skip
      inside = harness.evaluate_tasks(
        lm, names, include_path=tasks, num_fewshot=shots, batch_size=4, log_samples=True
      )
      for name in names:
        theirs, ours = samples(over, name), samples(inside, name)
        assert len(theirs) == len(ours) >= 12
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
        assert [x for x, _ in theirs] == pytest.approx([x for x, _ in ours], abs=1e-3)
        assert over["results"][name]["acc,none"] == inside["results"][name]["acc"]
