"""Perplexity of documents against a plain PyTorch loop, on a checkpoint that PyTorch wrote."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the referee is PyTorch")

import gptneo_jax  # noqa: E402
from gptneo_jax.data import load_tokenizer  # noqa: E402
from gptneo_jax.data.documents import Document  # noqa: E402
from gptneo_jax.evals import perplexity  # noqa: E402
from tests.helpers import hf_models  # noqa: E402

pytestmark = pytest.mark.parity

T = 160  # positions: twenty windows of the local layers
WORDS = "the quick brown fox jumps over a lazy dog ção 日本 while seven wizards watch it".split()


@pytest.fixture(scope="module")
def documents():
  """From an empty document to one many times as long as the context."""
  rng = np.random.default_rng(0)
  return [
    Document(" ".join(rng.choice(WORDS, n)), ("Prose", "Verse")[n % 2], f"here:{n}")
    for n in (0, 3, 40, 159, 400, 1200)
  ]


@pytest.fixture(scope="module", params=[0.1, 0.3])
def both(request, documents, tmp_path_factory):
  folder = tmp_path_factory.mktemp("perplexity")
  tokenizer = load_tokenizer("train", documents=documents, vocab_size=300)
  model = hf_models.gpt_neo(
    layers=4, hidden=32, window=8, positions=T, vocab=300, std=request.param
  )
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return model, gptneo_jax.load(str(folder))


def losses(model, tokenizer, text, stride):
  """Nats of each token, window by window."""
  ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
  found, start = [], 0
  while len(found) < len(ids) - 1:
    end = min(start + T, len(ids) - 1)
    with torch.no_grad():
      logits_TxV = model(torch.tensor([ids[start:end]])).logits[0]
    new = end - len(found)
    targets_N = torch.tensor(ids[end - new + 1 : end + 1])
    losses_N = torch.nn.functional.cross_entropy(logits_TxV[-new:], targets_N, reduction="none")
    found += losses_N.double().tolist()
    start += stride
  return found


@pytest.mark.parametrize("stride", [None, 37])
def test_equals_a_pytorch_loop(both, documents, stride):
  model, lm = both
  theirs = [losses(model, lm.tokenizer, d.text, stride or T) for d in documents]
  assert max(len(row) for row in theirs) > 6 * T
  ours = perplexity.measure(lm, documents, seq_len=T, stride=stride, batch_size=4, progress=False)
  for subset in (None, "Prose", "Verse"):
    own = [x for d, row in zip(documents, theirs) if subset in (None, d.subset) for x in row]
    figures = ours["subsets"][subset] if subset else ours["all"]
    assert figures["tokens"] == len(own)
    assert figures["perplexity"] == pytest.approx(math.exp(math.fsum(own) / len(own)), rel=1e-5)


def test_disjoint_and_strided_windows_differ(both, documents):
  """Otherwise the test above could pass with the stride ignored."""
  model, lm = both
  disjoint, strided = (
    sum(sum(losses(model, lm.tokenizer, d.text, stride)) for d in documents) for stride in (T, 37)
  )
  assert abs(disjoint / strided - 1) > 1e-4
