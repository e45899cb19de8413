"""Harness tasks on our model and on the harness' class for PyTorch models, HFLM: equal results."""

import json

import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.data.documents import Document
from gptneo_jax.evals import harness, harness_tasks, local_tasks
from tests.helpers import hf_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

pytestmark = pytest.mark.parity


GENERATION = """
task: continue
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: generate_until
test_split: test
doc_to_text: text
doc_to_target: text
generation_kwargs: {until: ["\\n", "the"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
WORDS = "the quick brown fox jumps over a lazy dog and does not mind it at all today".split()


def sentence(rng, words):
  return " ".join(rng.choice(WORDS, words))


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def hflm(folder, batch_size):
  from lm_eval.models.huggingface import HFLM

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager", dtype=torch.float32
  )
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  return HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size, device="cpu")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
  """The folder of a random model with 32 positions and a window of 6, and a folder of data."""
  folder, rng = tmp_path_factory.mktemp("model"), np.random.default_rng(0)
  texts = [sentence(rng, 40) for _ in range(50)]
  tokenizer = data.load_tokenizer(
    "train", documents=[Document(text, "", "here") for text in texts], vocab_size=290
  )
  tokenizer.save_pretrained(folder)
  hf_models.gpt_neo(std=0.3, vocab=290, positions=32).save_pretrained(folder)
  items = folder / "data"
  items.mkdir()
  lengths = rng.integers(3, 70, 12)  # some are longer than the model
  write(items / "lambada_test.jsonl", [{"text": sentence(rng, int(n))} for n in lengths])
  write(
    items / "hellaswag_val.jsonl",
    [
      {"query": sentence(rng, int(n)), "choices": [sentence(rng, 4) for _ in range(4)], "gold": 1}
      for n in lengths
    ],
  )
  write(
    items / "piqa_val.jsonl",
    [
      {"goal": sentence(rng, 6), "sol1": str(rng.choice(WORDS)), "sol2": "fox", "label": i % 2}
      for i in range(12)
    ],
  )
  (items / "wikitext2_test.txt").write_text(sentence(rng, 500))
  write(items / "pile_test.jsonl", [{"text": sentence(rng, n)} for n in (5, 90, 250)])
  return folder, items


def evaluated(model, name, items, shots, limit, include_path=None):
  """Metrics, and the model's responses in the order of the requests."""
  report = {"results": {}, "versions": {}, "num_fewshot": {}, "items": {}}
  samples = {}
  manager = harness_tasks.make_manager([name], include_path)
  loaded = harness_tasks.load(name, manager, model, str(items), shots, seed=0)
  harness.evaluate_loaded(model, loaded, limit, report, samples)
  answers = [answer for item in samples[name] for row in item["resps"] for answer in row]
  return report["results"][name], answers


def assert_same(ours, theirs, name, items, shots=None, limit=None):
  """Log-likelihoods within 1e-3; greedy choices and accuracies equal."""
  results, answers = evaluated(ours, name, items, shots, limit)
  expected, expected_answers = evaluated(theirs, name, items, shots, limit)
  assert len(answers) == len(expected_answers) > 0
  if isinstance(answers[0], tuple):
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected_answers]
    answers, expected_answers = ([score for score, _ in row] for row in (answers, expected_answers))
  np.testing.assert_allclose(answers, expected_answers, rtol=0, atol=1e-3)
  for metric, value in expected.items():
    if metric.startswith("acc"):
      assert results[metric] == value, metric
    else:
      assert results[metric] == pytest.approx(value, rel=1e-4), metric


def our_model(folder, batch_size):
  from gptneo_jax.evals.lm_eval_model import LmEvalModel

  return LmEvalModel(gptneo_jax.load(str(folder)), batch_size)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_random_model(random_model, batch_size):
  """Windows, contexts truncated on the left, shared contexts, texts of many windows."""
  folder, items = random_model
  ours, theirs = our_model(folder, batch_size), hflm(folder, batch_size)
  for name in ("lambada_local", "hellaswag_local", "piqa_local", "pile_local", "wikitext_local"):
    assert_same(ours, theirs, name, items)
  for name in ("lambada_local", "hellaswag_local", "piqa_local"):
    assert_same(ours, theirs, name, items, shots=5)


def test_generation(random_model, tmp_path):
  """Greedy continuations of prompts of many lengths, truncated on the left, cut at stop strings."""
  folder, items = random_model
  (tmp_path / "continue.yaml").write_text(GENERATION % (items / "lambada_test.jsonl"))
  ours, theirs = our_model(folder, 4), hflm(folder, 4)
  _, answers = evaluated(ours, "continue", items, None, None, str(tmp_path))
  _, expected = evaluated(theirs, "continue", items, None, None, str(tmp_path))
  assert answers == expected
  assert len(set(answers)) > 1 and any(answers)


def test_trained_checkpoint(shared_data):
  """The checkpoint of the development data on its tasks, with zero and with five examples."""
  folder, items = shared_data / "checkpoints" / "neo_docs_hf", shared_data / "tasks"
  ours, theirs = our_model(folder, 4), hflm(str(folder), 4)
  assert_same(ours, theirs, "lambada_local", items, limit=4)
  assert_same(ours, theirs, "piqa_local", items, limit=4)
  ours, theirs = our_model(folder, 1), hflm(str(folder), 1)
  assert_same(ours, theirs, "hellaswag_local", items, shots=5, limit=1)
  assert_same(ours, theirs, "wikitext_local", items, limit=1)


def test_windows_are_cut_between_words(random_model):
  """The tokens of the pieces are those of the uncut text."""
  folder, items = random_model
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  text = (items / "wikitext2_test.txt").read_text() + " = = = \n \n  Zürich…\n 数字 " * 9
  pieces = local_tasks.cut(text, tokenizer, 30)
  assert "".join(pieces) == text
  ids = [tokenizer(piece).input_ids for piece in pieces]
  assert [i for row in ids for i in row] == tokenizer(text).input_ids
  assert 20 < np.mean([len(row) for row in ids]) and max(map(len, ids)) <= 30
