"""Fifty steps of every task have the losses of transformers' models, trained by PyTorch's AdamW.

Ours learns from packed rows; there each sequence is alone, or in a padded batch of Trainer. Texts
reach past GPT-Neo's window of 8.
"""

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax import data  # noqa: E402
from gptneo_jax.examples.packing import Packing  # noqa: E402
from gptneo_jax.examples.records import Record  # noqa: E402
from gptneo_jax.examples.task_file import TaskSpec  # noqa: E402
from gptneo_jax.training import run_config, tasks  # noqa: E402
from gptneo_jax.training.example_batches import ExampleBatches  # noqa: E402
from tests.helpers import training_curves as curves  # noqa: E402
from tests.helpers.packed_checks import small_model  # noqa: E402
from tests.helpers.small_tokenizers import trained_tokenizer  # noqa: E402

pytestmark = [
  pytest.mark.parity,
  pytest.mark.filterwarnings("ignore"),  # of PyTorch's loader, without an accelerator
]

WORDS = "The quick brown fox jumps over the lazy dog and Olá mundo: ação e coração.".split()
ANIMALS = ("fox", "dog", "mundo:")
TOKENS = {"start": 320, "delimiter": 321, "extract": 322}
LENGTH = 80  # of a row


# --- examples -------------------------------------------------------------------------------------


def texts(number):
  """Texts with one of ANIMALS somewhere in the first half of each, and which it is."""
  rng = np.random.default_rng(0)
  others = [word for word in WORDS if word not in ANIMALS]
  for _ in range(number):
    words = [str(word) for word in rng.choice(others, rng.integers(4, 13))]
    kind = int(rng.integers(3))
    words.insert(int(rng.integers(len(words) // 2)), ANIMALS[kind])
    yield words, kind


def records_of(task, problem=""):
  """24 of them, their fields named by role."""
  found = []
  for n, (words, kind) in enumerate(texts(24)):
    text = " ".join(words)
    if task == "sequence_classification":
      several = [name for name in ANIMALS[:2] if name in words] + ["long"] * (len(words) > 8)
      label = {"regression": kind - 0.5, "multi_label_classification": several}
      fields = {"text": text, "label": label.get(problem, ANIMALS[kind])}
    elif task == "token_classification":
      tags = ["B-A" if word in ANIMALS else "O" for word in words]
      fields = {"tokens": words, "labels": tags}
    elif task == "question_answering":
      answers = [{"text": ANIMALS[kind], "answer_start": text.index(ANIMALS[kind])}]
      fields = {"question": "Who?", "context": text, "answers": answers if n % 4 else []}
    elif task == "multiple_choice":
      choices = ["fox", "dog", "mundo:", "lazy"][: 3 + n % 2]
      fields = {"question": text, "choices": choices, "answer": choices[kind]}
    else:
      fields = {"question": text, "answer": f"{ANIMALS[kind]} jumps"}
    found.append(Record(fields, f"f:{n + 1}"))
  return found


def batches_of(task, *, problem="", packed=True, batch_size=2, length=LENGTH):
  """Fifty of them, as training makes them, with the task."""
  settings = run_config.base(small_model("lm", 320)).examples.to_dict() | {"stride": 8}
  spec = TaskSpec(task, length, length, settings=settings, tokens=TOKENS)
  learned = tasks.find(task)
  records = records_of(task, problem)
  spec = learned.kind.settle(records, spec)
  encoder = data.DocumentEncoder(trained_tokenizer())
  examples = learned.kind.encode(records, spec, encoder, labelled=True)
  assert max(len(ids) for one in examples for ids in one.sequences) > 2 * curves.WINDOW
  packing = Packing(examples, length, packed=packed)
  assert not packed or packing.segments > 1
  batches = ExampleBatches(packing, learned.kind.layout(spec), batch_size=batch_size, seed=0)
  return learned, spec, list(itertools.islice(batches, curves.STEPS))


# --- losses in PyTorch ----------------------------------------------------------------------------


def of_labels(hf, batch):
  """Of texts with a class, several labels or a value."""
  dtype, read = torch.float32, lambda labels: labels
  if hf.config.problem_type == "single_label_classification":
    dtype, read = torch.int64, np.argmax
  return curves.mean(
    (
      float(batch["weights"][one.row, one.place]),
      hf(
        input_ids=one.ids,
        labels=torch.tensor(read(batch["labels"][one.row, one.place]), dtype=dtype)[None],
      ).loss,
    )
    for one in curves.sequences(batch)
  )


def of_tokens(hf, batch):
  """The mean over all words, of each sequence's own mean."""
  weighted = []
  for one in curves.sequences(batch):
    labels = batch["labels"][one.row, one.tokens]
    if count := (labels != -100).sum():
      weighted.append((float(count), hf(input_ids=one.ids, labels=curves.tensor(labels)).loss))
  return curves.mean(weighted)


def of_answers(hf, batch):
  """Of the tokens after those that count: the last one's is in no input."""

  def whole(hf, one):
    weights = batch["weights"][one.row, one.tokens]
    following = batch["targets"][one.row, one.tokens]
    ids = np.append(one.ids[0].numpy(), following[-1])
    labels = np.append(-100, np.where(weights > 0, following, -100))
    return float(weights.sum()), hf(input_ids=curves.tensor(ids), labels=curves.tensor(labels)).loss

  return curves.mean(whole(hf, one) for one in curves.sequences(batch))


def of_spans(hf, batch):
  def span(one):
    at = lambda name: curves.tensor(batch[name][one.row, one.place] - one.tokens[0])
    return hf(input_ids=one.ids, start_positions=at("starts"), end_positions=at("ends")).loss

  return curves.mean((1.0, span(one)) for one in curves.sequences(batch))


def questions(batch):
  """The sequences of each, and which is right."""
  key = lambda one: (one.row, batch["groups"][one.row, one.place])
  for _, group in itertools.groupby(curves.sequences(batch), key):
    choices = list(group)
    right = [batch["weights"][one.row, one.place] for one in choices].index(1.0)
    yield choices, right


def of_choices(hf, batch):
  """By a head of one label, which scores one choice at a time."""

  def nll(choices, right):
    scores = torch.cat([hf(input_ids=one.ids).logits[:, 0] for one in choices])
    return torch.nn.functional.cross_entropy(scores[None], curves.tensor(right))

  return curves.mean((1.0, nll(*each)) for each in questions(batch))


def of_double_heads(hf, batch, coefficient):
  """By GPT-2's own class, which takes the choices as rows filled up at their ends."""
  choice, lm = [], []
  for choices, right in questions(batch):
    said = hf(
      input_ids=filled(choices, curves.PAD),
      labels=filled(choices, -100),
      mc_token_ids=curves.tensor([len(one.tokens) - 1 for one in choices]),
      mc_labels=curves.tensor(right),
    )
    choice.append((1.0, said.mc_loss))
    lm.append((float(sum(len(one.tokens) - 1 for one in choices)), said.loss))
  return curves.mean(choice) + coefficient * curves.mean(lm)


def filled(choices, value):
  longest = max(len(one.tokens) for one in choices)
  pad = lambda ids: np.pad(ids, (0, longest - len(ids)), constant_values=value)
  return curves.tensor(np.stack([pad(one.ids[0].numpy()) for one in choices]))


# --- the curves -----------------------------------------------------------------------------------


def test_text(tmp_path):
  """Continued pre-training: rows of T + 1 tokens, whatever documents they are of."""
  file = tmp_path / "train.jsonl"
  lines = (json.dumps({"text": " ".join(words)}) + "\n" for words, _ in texts(300))
  file.write_text("".join(lines), encoding="utf-8")
  read = data.DataConfig(source="jsonl", path=str(file), validation_fraction=0)
  stream = data.TrainBatches(read, trained_tokenizer(), batch_size=4, seq_len=48, seed=0)
  batches = list(itertools.islice(stream, curves.STEPS))
  stream.close()
  hf = curves.model("gpt_neo", "lm")
  ours = [said["loss"] for said in curves.our_losses(tasks.find("lm"), hf, batches)]

  def loss(hf, batch):
    ids = torch.tensor(np.concatenate([batch["inputs"], batch["targets"][:, -1:]], 1)).long()
    return hf(input_ids=ids, labels=ids).loss

  curves.same(ours, curves.their_losses(hf, batches, loss), "text")


CASES = {
  "one label": ("gpt_neo", "sequence_classification", 3, "single_label_classification"),
  "several labels": ("gpt_neo", "sequence_classification", 3, "multi_label_classification"),
  "a value": ("gpt2", "sequence_classification", 1, "regression"),
  "tokens": ("gpt_neo", "token_classification", 3, ""),
  "spans": ("gpt_neo", "question_answering", 0, ""),
}
LOSSES = {
  "sequence_classification": of_labels, "token_classification": of_tokens,
  "question_answering": of_spans,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_heads(name):
  family, task, num_labels, problem = CASES[name]
  options = {"num_labels": num_labels} if num_labels else {}
  if problem:
    options["problem_type"] = problem
  learned, spec, batches = batches_of(task, problem=problem)
  assert len(spec.labels) == (num_labels if num_labels > 1 else 0)
  hf = curves.model(family, task, **options)
  ours = [said["loss"] for said in curves.our_losses(learned, hf, batches)]
  curves.same(ours, curves.their_losses(hf, batches, LOSSES[task]), name)


def test_choices_by_one_label():
  learned, _, batches = batches_of("multiple_choice", length=200)
  hf = curves.model("gpt_neo", "sequence_classification", num_labels=1)
  ours = [said["loss"] for said in curves.our_losses(learned, hf, batches)]
  curves.same(ours, curves.their_losses(hf, batches, of_choices), "choices by one label")


def test_choices_by_double_heads():
  """With a language model's loss beside it, as GPT-1 learned."""
  learned, _, batches = batches_of("multiple_choice", length=200)
  hf = curves.model("gpt2", "double_heads")
  said = curves.our_losses(learned, hf, batches, **{"examples.lm_coefficient": 0.5})
  ours = [one["loss"] + 0.5 * one["lm_loss"] for one in said]
  theirs = curves.their_losses(hf, batches, lambda *each: of_double_heads(*each, 0.5))
  curves.same(ours, theirs, "choices by double heads")


def test_answers():
  learned, _, batches = batches_of("instruction")
  hf = curves.model("gpt_neo", "lm")
  ours = [said["loss"] for said in curves.our_losses(learned, hf, batches)]
  curves.same(ours, curves.their_losses(hf, batches, of_answers), "answers")


def test_labels_by_trainer(tmp_path):
  """Its batches are padded, and the head finds the last token of each row by the padding's id."""
  options = dict(num_labels=3, problem_type="single_label_classification")
  hf = curves.model("gpt_neo", "sequence_classification", **options)
  learned, _, batches = batches_of("sequence_classification", packed=False, batch_size=4)
  ours = [said["loss"] for said in curves.our_losses(learned, hf, batches)]
  examples = [
    {"input_ids": one.ids[0].numpy(), "labels": batch["labels"][one.row, 0].argmax()}
    for batch in batches
    for one in curves.sequences(batch)
  ]
  theirs = curves.trainer_losses(hf, examples, 4, tmp_path)
  curves.same(ours, theirs, "one label, by Trainer")


def test_answers_by_trainer(tmp_path):
  hf = curves.model("gpt_neo", "lm")
  learned, _, batches = batches_of("instruction", packed=False, batch_size=4)
  ours = [said["loss"] for said in curves.our_losses(learned, hf, batches)]
  examples = []
  for batch in batches:
    for one in curves.sequences(batch):
      following = batch["targets"][one.row, one.tokens]
      counted = np.where(batch["weights"][one.row, one.tokens] > 0, following, -100)
      ids = np.append(one.ids[0].numpy(), following[-1])
      examples.append({"input_ids": ids, "labels": np.append(-100, counted)})
  theirs = curves.trainer_losses(hf, examples, 4, tmp_path)
  curves.same(ours, theirs, "answers, by Trainer")
