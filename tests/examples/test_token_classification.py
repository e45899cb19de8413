"""Words with labels to tokens, windows of long sentences, predictions, metrics."""

import copy

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from gptneo_jax import data
from gptneo_jax.data import DataError
from gptneo_jax.examples import token_classification as kind
from gptneo_jax.examples.columns import by_role
from gptneo_jax.examples.records import Record, read_records
from gptneo_jax.examples.task_file import TaskSpec
from tests.helpers.small_tokenizers import trained_tokenizer

FIELDS = [
  {"tokens": ["Quick", "brown", "foxes", "jump", "."], "labels": "B-ANI I-ANI I-ANI O O".split()},
  {"tokens": ["ação", "e", "coração"], "labels": ["I-ACT", "O", "O"]},
]  # fmt: skip


def spec_of(max_tokens=32, **fields):
  settings = {"stride": 6}
  return TaskSpec(task="token_classification", max_tokens=max_tokens, settings=settings, **fields)


def records_of(*fields):
  return [Record(one, f"f:{n}") for n, one in enumerate(fields, 1)]


@pytest.fixture(scope="module")
def encoder():
  return data.DocumentEncoder(trained_tokenizer())


@pytest.fixture
def spec():
  return kind.settle(records_of(*FIELDS), spec_of())


def outputs_of(examples, spec, place):
  """What a model would say that puts `place(label)` where the label is `label`."""
  found = []
  for example in examples:
    (labels,) = example.tokens["labels"]
    logits = np.zeros((len(labels), len(spec.labels)), np.float32)
    counted = np.flatnonzero(labels >= 0)
    logits[counted, [place(label) for label in labels[counted]]] = 2.0
    found.append(logits)
  return found


def test_labels_are_complete_and_sorted(spec):
  assert spec.labels == ("O", "B-ACT", "I-ACT", "B-ANI", "I-ANI")
  plain = records_of({"tokens": ["a", "b"], "labels": ["VERB", "NOUN"]})
  assert kind.settle(plain, spec_of()).labels == ("NOUN", "VERB")


def test_labels_of_the_config_stay_in_their_order():
  labels = ("B-X", "I-X", "O")
  numbers = records_of({"tokens": ["a", "b"], "labels": [0, 2]})
  assert kind.settle(numbers, spec_of(labels=labels)).labels == labels
  with pytest.raises(DataError, match=r"examples\.labels has 'S-X': tags are learned as IOB2"):
    kind.settle(numbers, spec_of(labels=("S-X", "I-X", "O")))


def test_weights_of_classes(encoder):
  spec = spec_of()
  spec = kind.settle(
    records_of(*FIELDS), spec.replace(settings={**spec.settings, "class_weights": "O=0.5"})
  )
  examples = kind.encode(records_of(*FIELDS), spec, encoder, labelled=True)
  for example in examples:
    (labels,), (weights,) = example.tokens["labels"], example.tokens["weights"]
    np.testing.assert_array_equal(weights, np.select([labels < 0, labels == 0], [0, 0.5], 1))


def test_one_class_is_nothing_to_learn():
  one = records_of({"tokens": ["a", "b"], "labels": ["O", "O"]})
  with pytest.raises(DataError, match="f:1: all 2 labels are 'O', so there is nothing to learn"):
    kind.settle(one, spec_of())


def test_a_label_that_training_does_not_know(spec, encoder):
  unknown = records_of(*FIELDS, {"tokens": ["a"], "labels": ["B-ANY"]})
  with pytest.raises(DataError, match=r"f:3: the label 'B-ANY' is none of the 5.*mean B-ANI\?"):
    kind.encode(unknown, spec, encoder, labelled=True)


def test_the_label_is_at_the_first_token_of_each_word(spec, encoder):
  examples = kind.encode(records_of(*FIELDS), spec, encoder, labelled=True)
  for example, fields in zip(examples, FIELDS):
    (ids,), (labels,), (weights,) = (
      example.sequences, example.tokens["labels"], example.tokens["weights"]
    )  # fmt: skip
    words = encoder.encode([f" {word}" for word in fields["tokens"]])
    np.testing.assert_array_equal(ids, np.concatenate(words))
    starts = np.cumsum([0, *map(len, words[:-1])])
    assert any(len(word) > 1 for word in words)
    np.testing.assert_array_equal(np.flatnonzero(labels != -100), starts)
    np.testing.assert_array_equal(weights, labels != -100)
  names = [spec.labels[label] for label in examples[1].tokens["labels"][0] if label >= 0]
  assert names == ["B-ACT", "O", "O"]


def test_the_ids_are_those_of_transformers_with_add_prefix_space(encoder):
  backend = copy.deepcopy(trained_tokenizer().backend_tokenizer)
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  for fields in FIELDS:
    expected = theirs(fields["tokens"], is_split_into_words=True)
    (example,) = kind.encode(records_of(fields), spec_of(), encoder, labelled=False)
    assert example.sequences[0].tolist() == expected["input_ids"]
    firsts = [expected.word_to_tokens(n).start for n in range(len(fields["tokens"]))]
    assert example.extra.tokens.tolist() == firsts


def test_without_labels_the_ids_are_the_same_and_nothing_counts(spec, encoder):
  labelled = kind.encode(records_of(*FIELDS), spec, encoder, labelled=True)
  bare = [{"tokens": one["tokens"]} for one in FIELDS]
  for one, other in zip(labelled, kind.encode(records_of(*bare), spec, encoder, labelled=False)):
    np.testing.assert_array_equal(one.sequences[0], other.sequences[0])
    assert (other.tokens["labels"][0] == -100).all() and not other.tokens["weights"][0].any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(5, 12), st.integers(0, 12))
def test_windows_have_each_word_once(lengths, most, shared):
  lengths, shared = np.array(lengths), min(shared, most // 2)
  found = kind.windows(lengths, most, shared)
  assert [new for _, new, _ in found[1:]] == [end for _, _, end in found[:-1]]
  assert found[0][:2] == (0, 0) and found[-1][2] == len(lengths)
  for begin, new, end in found:
    assert begin <= new < end
    assert lengths[begin:end].sum() <= most and lengths[begin:new].sum() <= shared


def test_a_long_sentence_loses_no_word(encoder):
  words = ["brown", "foxes", "jump", "over", "dogs"] * 8
  labels = ["B-A", "I-A", "O", "O", "B-B"] * 8
  records = records_of(*FIELDS, {"tokens": words, "labels": labels})
  spec = kind.settle(records, spec_of(max_tokens=20))
  examples = kind.encode(records, spec, encoder, labelled=True)
  assert len(examples) > 6 and max(example.length for example in examples) <= 20
  assert sum((one.tokens["labels"][0] >= 0).sum() for one in examples) == 5 + 3 + 40
  said = kind.predictions(outputs_of(examples, spec, lambda label: label), examples, spec)
  assert said[2]["labels"] == labels and said[2]["tokens"] == words
  assert kind.metrics(said, records, spec)["f1"] == 1


def test_a_word_longer_than_a_row(spec, encoder):
  records = records_of({"tokens": ["a", "x" * 50], "labels": ["O", "O"]})
  with pytest.raises(DataError, match=r"f:1: the word 'x+' has 51 tokens, and a row 32; raise"):
    kind.encode(records, spec, encoder, labelled=True)


def test_predictions_have_entities_with_scores(spec, encoder):
  records = records_of(FIELDS[0], {"text": "Foxes jump."}, {"text": " "})
  examples = kind.encode(records, spec, encoder, labelled=True)
  outputs = outputs_of(examples, spec, lambda label: label)
  begin = spec.labels.index("I-ACT")
  outputs[1][examples[1].extra.tokens[0], begin] = 9.0  # an I- at the beginning begins one
  first, second, third = kind.predictions(outputs, examples, spec)
  chance = np.exp(2) / (np.exp(2) + 4)
  np.testing.assert_allclose(first["probabilities"], [chance] * 5)
  (entity,) = first["entities"]
  assert entity == {
    "type": "ANI", "text": "Quick brown foxes", "start": 0, "end": 3, "score": pytest.approx(chance)
  }  # fmt: skip
  assert second["tokens"] == ["Foxes", "jump", "."]
  assert [one | {"score": 0} for one in second["entities"]] == [
    {"type": "ACT", "text": "Foxes", "start": 0, "end": 1, "score": 0, "characters": [0, 5]}
  ]
  assert third == {"tokens": [], "labels": [], "probabilities": [], "entities": []}


def test_metrics(spec, encoder):
  records = records_of(*FIELDS)
  examples = kind.encode(records, spec, encoder, labelled=True)
  outside = kind.predictions(outputs_of(examples, spec, lambda label: 0), examples, spec)
  found = kind.metrics(outside, records, spec)
  assert found["accuracy"] == 0.5 and found["f1"] == found["recall"] == 0
  right = kind.predictions(outputs_of(examples, spec, lambda label: label), examples, spec)
  found = kind.metrics(right, records, spec)
  names = {f"{name}{of}" for of in ("", "/ACT", "/ANI") for name in ("f1", "precision", "recall")}
  assert set(found) == {"accuracy", *names}
  assert set(found.values()) == {1.0}


def test_labels_that_are_no_tags_have_an_accuracy_alone(encoder):
  records = records_of({"tokens": ["jump", "dog"], "labels": ["VERB", "NOUN"]})
  spec = kind.settle(records, spec_of())
  examples = kind.encode(records, spec, encoder, labelled=True)
  said = kind.predictions(outputs_of(examples, spec, lambda label: 0), examples, spec)
  assert "entities" not in said[0]
  assert kind.metrics(said, records, spec) == {"accuracy": 0.5}


FILES = {
  "wnut17/train.conll": (3394, 6),
  "ner_pt/pt_bosque-ud-dev.iob2": (1172, 3),
  "classification/nlupp_banking_en/train.json": (1867, 13),
}


@pytest.mark.parametrize("name", FILES)
def test_real_files(shared_data, encoder, name):
  """Each word has its label back, in rows shorter than some sentences."""
  records = by_role(read_records(str(shared_data / "tasks" / name)), kind.ROLES, "")
  spec = kind.settle(records, spec_of(max_tokens=140))
  assert (len(records), len(spec.labels) // 2) == FILES[name]
  examples = kind.encode(records, spec, encoder, labelled=True)
  said = kind.predictions(outputs_of(examples, spec, lambda label: label), examples, spec)
  found = kind.metrics(said, records, spec)
  assert found["f1"] == found["accuracy"] == 1
