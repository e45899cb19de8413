"""Labels, what they teach, and what is said of wrong ones."""

import numpy as np
import pytest

from gptneo_jax.data import DataError
from gptneo_jax.examples import labels
from gptneo_jax.examples.records import Record
from gptneo_jax.examples.task_file import TaskSpec


def records(*values):
  return [Record({"text": "x", "label": value}, f"file:{n}") for n, value in enumerate(values, 1)]


def spec(**fields) -> TaskSpec:
  return TaskSpec("sequence_classification", 8, **fields)


@pytest.mark.parametrize(
  ("values", "problem", "names"),
  [
    (["spam", "ham", "ham"], labels.SINGLE, ("ham", "spam")),
    ([0, 1, 10, 2], labels.SINGLE, ("0", "1", "2", "10")),
    ([True, False], labels.SINGLE, ("false", "true")),
    (["2", "0"], labels.SINGLE, ("0", "2")),
    ([["a", "b"], [], ["b"]], labels.MULTI, ("a", "b")),
    ([["a"], None], labels.MULTI, ("a",)),
    ([0.5, 3], labels.REGRESSION, ()),
    (["4.75", "3"], labels.REGRESSION, ()),
    (["v1.0", "v2"], labels.SINGLE, ("v1.0", "v2")),
  ],
)
def test_the_problem_follows_from_the_labels(values, problem, names):
  settled = labels.settle(records(*values), spec())
  assert (settled.problem, settled.labels) == (problem, names)


def test_what_is_learned():
  settled = labels.settle(records("a", "b"), spec())
  assert labels.target(records("b")[0], settled).tolist() == [0, 1]
  several = labels.settle(records(["a", "c"], ["b"]), spec())
  assert labels.target(records(["c", "a"])[0], several).tolist() == [1, 0, 1]
  assert labels.target(records([])[0], several).tolist() == [0, 0, 0]
  value = labels.settle(records("1.5", "2"), spec())
  assert labels.target(records("2.5")[0], value).tolist() == [2.5]


def test_several_labels_as_one_text():
  settled = labels.settle(records("a, b", "b", ""), spec(problem=labels.MULTI))
  assert settled.labels == ("a", "b")
  assert labels.target(records("")[0], settled).tolist() == [0, 0]


def test_smoothing_is_that_of_torch():
  settled = labels.settle(records("a", "b", "c"), spec())
  target_C = labels.smoothed(labels.target(records("b")[0], settled), settled, 0.3)
  np.testing.assert_allclose(target_C, [0.1, 0.8, 0.1], rtol=1e-6)


def test_class_weights():
  one, balanced = (
    labels.settle(records("a", "a", "a", "b"), spec(settings={"class_weights": text}))
    for text in ("b=2.5", "balanced")
  )
  assert one.label_weights == (1.0, 2.5)
  assert balanced.label_weights == pytest.approx((4 / (2 * 3), 4 / (2 * 1)))


@pytest.mark.parametrize(
  ("values", "fields", "message"),
  [
    (["a", "a"], {}, "file:1: all 2 records have the label 'a'"),
    (["a", ""], {}, "file:2: no label"),
    (["a", None], {}, "file:2: no label"),
    (["a", "b"], {"problem": labels.REGRESSION}, "file:1: the label 'a' is no number"),
    (["1", "nan"], {"problem": labels.REGRESSION}, "file:2: the label 'nan' is no number"),
    ([["a"], "b"], {"problem": labels.SINGLE}, r"file:1: a list of labels, \['a'\]"),
    (["a", {"b": 1}], {}, "file:2: the label is {'b': 1}"),
    (["a", "b"], {"problem": "ranking"}, "examples.problem is 'ranking'"),
    (["a", "b"], {"settings": {"class_weights": "c=2"}}, "'c=2' is not LABEL=WEIGHT"),
    (["a", "b"], {"settings": {"class_weights": "a=-1"}}, "'a=-1' is not LABEL=WEIGHT"),
    ([1.5, 2.5], {"settings": {"class_weights": "balanced"}}, "for one label a record"),
    ([f"text {n}" for n in range(300)], {}, "300 different labels in 300 records"),
  ],
)
def test_mistakes(values, fields, message):
  with pytest.raises(DataError, match=message):
    labels.settle(records(*values), spec(**fields))


def test_a_label_that_training_does_not_know():
  settled = labels.settle(records("spam", "ham"), spec())
  with pytest.raises(DataError, match=r"file:1: the label 'span' is none of the 2 .* mean spam"):
    labels.target(records("span")[0], settled)
