"""Losses of documents, summed from windows."""

import math

import numpy as np
import pytest

import gptneo_jax
from gptneo_jax.data import load_tokenizer
from gptneo_jax.data.documents import Document
from gptneo_jax.data.tokenizer import DocumentEncoder
from gptneo_jax.errors import UserError
from gptneo_jax.evals import perplexity
from gptneo_jax.evals.resume_file import ResumeFile

T = 16
WORDS = "the quick brown fox jumps over a lazy dog ção 日本 while seven wizards watch it".split()


class Windows(list):
  """Batches as EvaluationBatches makes them, with the attributes of their documents."""

  subsets = ("Prose", "Verse", "Prose")
  bytes_per_document = (10, 4, 6)
  tokens_per_document = (3, 2, 1)


def test_sums_per_subset_and_overall():
  """Document 0 lies in two windows; a row of padding counts for nothing."""
  batches = Windows(
    [
      {"nll": np.array([[1.0, 0.5], [2.0, 0.0]]), "row_document": np.array([0, 0])},
      {"nll": np.array([[1.0], [0.25], [99.0]]), "row_document": np.array([1, 2, -1])},
    ]
  )
  results = perplexity.evaluate(lambda batch: batch["nll"], batches)
  assert results["eval/loss"] == 4.75 / 6
  assert results["eval/bits_per_byte"] == 4.75 / (20 * math.log(2))
  assert results["eval/loss/Prose"] == 3.75 / 4
  assert results["eval/bits_per_byte/Verse"] == 1.0 / (4 * math.log(2))
  assert results["eval/perplexity/Verse"] == math.exp(0.5)


@pytest.fixture(scope="module")
def documents():
  rng = np.random.default_rng(0)
  lengths = [40, 3, 0, 90, 17, 1, 60]
  return [
    Document(" ".join(rng.choice(WORDS, n)), ("Prose", "Verse")[i % 2], f"here:{i}")
    for i, n in enumerate(lengths)
  ]


@pytest.fixture(scope="module")
def lm(documents):
  """A random model whose predictions are far from uniform, so that confidences differ."""
  lm = gptneo_jax.init(
    gptneo_jax.ModelConfig(
      vocab_size=300, max_position_embeddings=32, hidden_size=16, num_layers=2, num_heads=2,
      window_size=4,
    )
  )  # fmt: skip
  lm.params["wte"] = lm.params["wte"] * 40
  lm.tokenizer = load_tokenizer("train", documents=documents, vocab_size=300)
  return lm


def token_by_token(lm, documents, stride):
  """(document, inputs seen, nll, confidence, correct) of each token, from the definition."""
  encoder = DocumentEncoder(lm.tokenizer)
  rows = []
  for number, ids in enumerate(encoder.encode([document.text for document in documents])):
    inputs = [encoder.end_of_text, *ids]
    for token in range(len(ids)):
      starts = range(0, token + 1, stride)
      start = next(start for start in starts if token < start + T)
      logits_V = np.asarray(lm.logits([inputs[start : token + 1]])[0, -1], np.float64)
      p_V = np.exp(logits_V - logits_V.max())
      p_V /= p_V.sum()
      target = ids[token]
      rows.append(
        (number, token - start + 1, -math.log(p_V[target]), p_V.max(), p_V.argmax() == target)
      )
  return rows


@pytest.mark.parametrize("stride", [None, 5])
def test_every_figure_by_its_definition(lm, documents, stride):
  got = perplexity.measure(lm, documents, seq_len=T, stride=stride, batch_size=3, progress=False)
  rows = token_by_token(lm, documents, stride or T)
  assert got["windows"] == (
    "disjoint windows of 16 tokens" if stride is None else "windows of 16 tokens, strided by 5"
  )
  for subset in (None, "Prose", "Verse"):
    figures = got["subsets"][subset] if subset else got["all"]
    numbers = [i for i, d in enumerate(documents) if subset in (None, d.subset)]
    own = [row for row in rows if row[0] in numbers]
    texts = [documents[i].text for i in numbers]
    nll, tokens = sum(row[2] for row in own), len(own)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert (figures["documents"], figures["tokens"]) == (len(numbers), tokens)
    assert (figures["words"], figures["bytes"]) == (words, size)
    expected = {
      "loss": nll / tokens,
      "perplexity": math.exp(nll / tokens),
      "word_perplexity": math.exp(nll / words),
      "byte_perplexity": math.exp(nll / size),
      "bits_per_byte": nll / size / math.log(2),
      "accuracy": sum(row[4] for row in own) / tokens,
    }
    for name, value in expected.items():
      assert figures[name] == pytest.approx(value, rel=2e-5), (subset, name)
  assert [(b["from"], b["to"]) for b in got["by_position"]] == [
    (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 10), (11, 12), (13, 14),
    (15, 16),
  ]  # fmt: skip
  for b in got["by_position"]:
    own = [row[2] for row in rows if b["from"] <= row[1] <= b["to"]]
    assert b["tokens"] == len(own)
    assert b["loss"] == pytest.approx(np.mean(own), rel=2e-5)
  assert sum(b["tokens"] for b in got["calibration"]) == len(rows)
  assert len(got["calibration"]) > 5
  error = 0
  for b in got["calibration"]:
    own = [row for row in rows if b["from"] <= row[3] < b["to"] + (b["to"] == 1)]
    assert b["tokens"] == len(own)
    assert b["confidence"] == pytest.approx(np.mean([row[3] for row in own]), rel=2e-5)
    assert b["accuracy"] == pytest.approx(np.mean([row[4] for row in own]))
    error += len(own) / len(rows) * abs(b["confidence"] - b["accuracy"])
  assert got["calibration_error"] == pytest.approx(error)


class Stopped(Exception):
  pass


def stop_after(monkeypatch, lm, count):
  """Makes the model fail at batch `count`, as if the machine did; returns the batches before it."""
  made, predictions = [], lm.predictions

  def failing(batch):
    if len(made) == count:
      raise Stopped
    made.append(batch)
    return predictions(batch)

  monkeypatch.setattr(lm, "predictions", failing)
  return made


@pytest.mark.parametrize("stopped_at", [1, 4])
def test_an_interrupted_run_ends_in_the_same_bits(lm, documents, stopped_at, tmp_path, monkeypatch):
  def run(settings, documents=documents):
    resume_file = ResumeFile(tmp_path / "report.json.partial", settings, seconds=0)
    options = {"seq_len": T, "batch_size": 2, "progress": False}
    return perplexity.measure(lm, documents, **options, resume_file=resume_file)

  whole = perplexity.measure(lm, documents, seq_len=T, batch_size=2, progress=False)
  with monkeypatch.context() as patched, pytest.raises(Stopped):
    stop_after(patched, lm, stopped_at)
    run({"stride": None})
  with monkeypatch.context() as patched:
    made = stop_after(patched, lm, -1)
    assert run({"stride": None}) == whole
  total = math.ceil(sum(math.ceil(len(ids) / T) for ids in _encoded(lm, documents)) / 2)
  assert len(made) == total - max(stopped_at - 1, 0)  # the last was not yet in the sums


def test_a_resume_file_of_other_settings_or_documents_is_not_used(
  lm, documents, tmp_path, monkeypatch, capsys
):
  path = tmp_path / "report.json.partial"
  options = {"seq_len": T, "batch_size": 2, "progress": False}
  resume_file = lambda **settings: ResumeFile(path, settings, seconds=0)
  with monkeypatch.context() as patched, pytest.raises(Stopped):
    stop_after(patched, lm, 3)
    perplexity.measure(lm, documents, **options, resume_file=resume_file(dtype="float32"))
  others = [Document("other " + d.text, d.subset, d.location) for d in documents]
  with pytest.raises(UserError, match=r"are not those of .*report\.json\.partial; delete it"):
    perplexity.measure(lm, others, **options, resume_file=resume_file(dtype="float32"))
  assert resume_file(dtype="bfloat16", limit=1).read() is None
  assert "has other settings (dtype, limit): starting again" in capsys.readouterr().out
  path.write_text("{")
  with pytest.raises(UserError, match=r"report\.json\.partial cannot be read"):
    resume_file(dtype="float32").read()


def test_no_text(lm):
  with pytest.raises(UserError, match="hold no text"):
    perplexity.measure(lm, [Document("", "s", "here")], seq_len=T, progress=False)


def test_perplexity_of_a_very_long_word_is_none(lm):
  """The exponential of the nats of one long word exceeds all floats."""
  got = perplexity.measure(lm, [Document("ção" * 200, "s", "here")], seq_len=T, progress=False)
  assert got["all"]["words"] == 1 and got["all"]["word_perplexity"] is None
  assert got["all"]["loss"] * got["all"]["tokens"] > 709


def test_losses_that_are_not_finite_are_refused(lm, monkeypatch):
  broken = {**lm.params, "wpe": lm.params["wpe"] * np.nan}
  monkeypatch.setattr(lm, "_params", broken)
  with pytest.raises(UserError, match="not finite"):
    perplexity.measure(lm, [Document("the quick", "s", "here")], seq_len=T, progress=False)


def _encoded(lm, documents):
  return DocumentEncoder(lm.tokenizer).encode([document.text for document in documents])
