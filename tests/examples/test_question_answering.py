"""Questions and contexts to windows, spans by characters, predictions, metrics."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptneo_jax import data
from gptneo_jax.data import DataError
from gptneo_jax.examples import question_answering as kind
from gptneo_jax.examples.columns import by_role
from gptneo_jax.examples.records import Record, read_records
from gptneo_jax.examples.task_file import TaskSpec
from tests.helpers.small_tokenizers import trained_tokenizer

CONTEXT = "The fox jumps over the lazy dog. Olá, mundo: ação ☂ e coração.\nThe dog sleeps."


def spec_of(max_tokens=128, **settings):
  settings = {"stride": 8, "max_answer_tokens": 30, "no_answer_threshold": 0.0, **settings}
  return TaskSpec(task="question_answering", max_tokens=max_tokens, settings=settings)


def question(answer="dog", context=CONTEXT, **fields):
  answers = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
  fields = {"id": "q", "question": "Who sleeps?", "context": context, "answers": answers, **fields}
  return Record(fields, "f:1")


@pytest.fixture(scope="module")
def encoder():
  return data.DocumentEncoder(trained_tokenizer())


def sure(examples, *, none=0.0):
  """What a model would say that is sure of each example's span; `none` is added for no answer."""
  found = []
  for example in examples:
    outputs = np.zeros((example.length, 2), np.float32)
    outputs[-1] = none / 2
    outputs[example.values["starts"][0], 0] += 10
    outputs[example.values["ends"][0], 1] += 10
    found.append(outputs)
  return found


def test_question_separator_context_and_end_of_text(encoder):
  (example,) = kind.encode([question()], spec_of(), encoder, labelled=True)
  asked, line, context = encoder.encode(["Who sleeps?", "\n", CONTEXT])
  expected = np.concatenate([asked, line, context, [encoder.end_of_text]])
  np.testing.assert_array_equal(example.sequences[0], expected)
  assert example.extra.prefix == len(asked) + len(line)


words = st.sampled_from(
  ["fox", "the ", " Olá", "ção", "☂", "日", "\n", "  ", "x.", " é", "\u00a0", "🙂"]
)


@given(st.lists(words, min_size=1, max_size=12), st.data())
def test_a_span_comes_back_as_it_was(encoder, parts, draw):
  """Leading spaces of tokens, and characters of several bytes, which are several tokens."""
  context = "".join(parts)
  start = draw.draw(st.integers(0, len(context) - 1))
  end = draw.draw(st.integers(start + 1, len(context)))
  ((ids, offsets_Nx2),) = encoder.encode_with_offsets([context])
  first, last = kind.token_span(offsets_Nx2, start, end)
  assert 0 <= first <= last < len(ids)
  begin, finish = offsets_Nx2[first, 0], offsets_Nx2[last, 1]
  assert begin <= start and end <= finish
  for n, (a, b) in enumerate(offsets_Nx2):  # no token beside it has a character of the answer
    assert (first <= n <= last) == (a < end and start < b)


def test_an_answer_is_found_by_its_characters(encoder):
  for answer in ("The fox", "fox", "ação ☂", "☂", "coração", "sleeps."):
    examples = kind.encode([question(answer)], spec_of(), encoder, labelled=True)
    (said,) = kind.predictions(sure(examples), examples, spec_of())
    assert said["answer"] == answer == CONTEXT[said["start"] : said["end"]]
    assert said["id"] == "q" and said["probability"] > 0.9


def test_no_answer_points_at_the_end_of_text(encoder):
  for record in (question(""), question("dog", is_impossible=True)):
    (example,) = kind.encode([record], spec_of(), encoder, labelled=True)
    assert example.values["starts"] == example.values["ends"] == (example.length - 1,)
    assert example.sequences[0][-1] == encoder.end_of_text
    (said,) = kind.predictions(sure([example]), [example], spec_of())
    assert said["answer"] == "" and said["start"] is None
    assert said["probability"] == said["no_answer_probability"] > 0.9


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 30))
def test_windows_share_their_stride(count, room, shared):
  found = kind.windows(count, room, shared)
  shared = min(shared, room // 2)
  assert found[0][0] == 0 and found[-1][1] == count
  assert all(last - first <= room for first, last in found)
  for (_, last), (first, end) in itertools.pairwise(found):
    assert last - first == shared and end > last


def test_a_long_context_loses_nothing(encoder):
  context = "nothing to see here. " * 12 + "the dog sleeps. " + "nothing at all. " * 12
  spec = spec_of(max_tokens=64)
  record = question("the dog sleeps", context)
  examples = kind.encode([record, question("", context)], spec, encoder, labelled=True)
  mine = [one for one in examples if one.record == 0]
  assert len(mine) > 4 and max(one.length for one in mine) <= 64
  (ids,) = encoder.encode([context])
  covered = set()
  for one in mine:
    window = one.extra
    part = one.sequences[0][window.prefix : -1]
    np.testing.assert_array_equal(part, ids[window.first : window.first + len(part)])
    covered |= set(range(window.first, window.first + len(part)))
  assert covered == set(range(len(ids)))
  with_it = [one for one in mine if one.values["starts"][0] < one.length - 1]
  assert 1 <= len(with_it) < len(mine)
  said = kind.predictions(sure(examples), examples, spec)
  assert [one["answer"] for one in said] == ["the dog sleeps", ""]


def test_the_score_of_a_span_is_compared_within_its_window(encoder):
  """All logits of a window may be moved together, which no softmax can tell."""
  context = "nothing to see here. " * 12 + "the dog sleeps."
  spec = spec_of(max_tokens=64)
  examples = kind.encode([question("dog", context)], spec, encoder, labelled=True)
  outputs = sure(examples)
  moved = [each + 50 * n for n, each in enumerate(outputs)]
  (one,), (other,) = (kind.predictions(each, examples, spec) for each in (outputs, moved))
  assert one["answer"] == other["answer"] == "dog"
  assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)


def test_probabilities_are_those_of_all_spans(encoder):
  """One window, spans of up to three tokens: the softmax written out."""
  spec = spec_of(max_answer_tokens=3)
  (example,) = kind.encode([question(context="dog fox dog")], spec, encoder, labelled=True)
  outputs = np.random.default_rng(0).standard_normal((example.length, 2)).astype(np.float32)
  (said,) = kind.predictions([outputs], [example], spec)
  place = range(example.extra.prefix, example.length - 1)
  exact = outputs.astype(np.float64)
  scores = {(i, j): exact[i, 0] + exact[j, 1] for i in place for j in place if i <= j < i + 3}
  none = exact[-1].sum()
  total = sum(map(np.exp, scores.values())) + np.exp(none)
  assert said["no_answer_probability"] == pytest.approx(np.exp(none) / total)
  assert said["n_best"][0]["probability"] == pytest.approx(np.exp(max(scores.values())) / total)
  assert said["no_answer_score"] == pytest.approx(none - max(scores.values()))
  shown = [one["probability"] for one in said["n_best"]]
  assert len(shown) == 5 and shown == sorted(shown, reverse=True)
  assert len({(one["start"], one["end"]) for one in said["n_best"]}) == 5


def test_the_threshold_decides_where_training_had_questions_without_answer(encoder):
  (example,) = kind.encode([question("dog")], spec_of(), encoder, labelled=True)
  outputs = sure([example], none=20.5)
  answer = lambda **settings: kind.predictions(outputs, [example], spec_of(**settings))[0]["answer"]
  assert answer() == "" and answer(no_answer_threshold=1.0) == "dog"
  assert answer(unanswerable=False) == "dog"


def test_settling_knows_whether_all_have_answers():
  assert not kind.settle([question()], spec_of()).settings["unanswerable"]
  assert kind.settle([question(), question("")], spec_of()).settings["unanswerable"]
  with pytest.raises(DataError, match="f:1: none of the 1 questions has an answer"):
    kind.settle([question("")], spec_of())


def test_forms_of_answers():
  lists = {"text": ["dog", "The"], "answer_start": [28, 0]}
  assert kind.answers_of(question(answers=lists)) == [("dog", 28), ("The", 0)]
  assert kind.answers_of(question(answers={"text": "dog", "answer_start": 28})) == [("dog", 28)]
  assert kind.answers_of(question(answers={"text": [], "answer_start": []})) == []


@pytest.mark.parametrize(
  "answers, message",
  [
    ([{"text": "dog", "answer_start": 27}], "the answer 'dog' is not at character 27.*is ' do'"),
    ([{"text": "dog", "answer_start": 900}], "the answer 'dog' is not at character 900.*is ''"),
    ([{"text": "dog", "answer_start": -1}], "the answer 'dog' is not at character -1"),
    ([{"text": "", "answer_start": 0}], "it has a text and an answer_start"),
    ([{"text": "dog"}], "it has a text and an answer_start"),
    ("dog", "it has a text and an answer_start"),
  ],
)
def test_an_answer_that_does_not_fit_is_named(encoder, answers, message):
  with pytest.raises(DataError, match=f"^f:1: question q: .*{message}"):
    kind.encode([question(answers=answers)], spec_of(), encoder, labelled=True)
  kind.encode([question(answers=answers)], spec_of(), encoder, labelled=False)


@pytest.mark.parametrize("policy", ["stop", "drop", "truncate_left"])
def test_a_question_longer_than_a_row(encoder, policy):
  records = [question(question="why " * 90 + "dog?"), question()]
  spec = spec_of(64).replace(on_too_long=policy)
  encode = lambda: kind.encode(records, spec, encoder, labelled=True)
  if policy == "stop":
    with pytest.raises(DataError, match=r"^f:1: question q: \d+ tokens are more than seq_len 64"):
      encode()
    return
  first = [one for one in encode() if one.record == 0]
  assert bool(first) == (policy == "truncate_left")
  for example in first:
    assert example.length <= 64 and example.extra.prefix == 32
    asked, line = encoder.encode([records[0].fields["question"], "\n"])
    expected = [*asked, *line][-32:]
    assert example.sequences[0][:32].tolist() == expected


@pytest.mark.parametrize("name, value", [("class_weights", "balanced"), ("label_smoothing", 0.1)])
def test_settings_that_are_of_labels(name, value):
  with pytest.raises(DataError, match=f"{name} is of labels, and an answer's places are none"):
    kind.settle([question()], spec_of(**{name: value}))


def test_an_empty_context_has_no_answer(encoder):
  examples = kind.encode([question("", context="")], spec_of(), encoder, labelled=False)
  (said,) = kind.predictions([np.zeros((examples[0].length, 2))], examples, spec_of())
  assert said["answer"] == "" and said["n_best"] == [] and said["no_answer_probability"] == 1
  json.dumps(said, allow_nan=False)


def test_metrics(encoder):
  spec = spec_of()
  records = [question("dog"), question("The fox"), question("")]
  examples = kind.encode(records, spec, encoder, labelled=True)
  right = kind.predictions(sure(examples), examples, spec)
  found = kind.metrics(right, records, spec)
  assert found["exact_match"] == found["f1"] == found["best_f1"] == found["no_answer_accuracy"] == 1
  silent = kind.predictions(sure(examples, none=30), examples, spec)
  found = kind.metrics(silent, records, spec)
  assert found["f1"] == pytest.approx(1 / 3) and found["has_answer_f1"] == 0
  assert found["no_answer_accuracy"] == 1 and found["best_exact_match"] == 1
  assert found["best_exact_match_threshold"] == pytest.approx(10, abs=1e-3)
  all_answered = kind.metrics(right[:2], records[:2], spec)
  assert all_answered == {"exact_match": 1, "f1": 1}


@pytest.mark.parametrize("name", ["xquad_en/xquad.en", "squad2_a/dev-v2.0-a"])
def test_the_spans_of_real_answers(shared_data, name):
  """Encoded with GPT-2's tokens and read back: all but one in 1,190 are made of whole tokens."""
  found = read_records(str(shared_data / f"tasks/qa/{name}.json"))
  records = by_role(found, kind.ROLES, "")
  encoder = data.DocumentEncoder(data.load_tokenizer(str(shared_data / "gpt2_tokenizer")))
  spec = kind.settle(records, spec_of(max_tokens=1024))
  examples = kind.encode(records, spec, encoder, labelled=True)
  said = kind.predictions(sure(examples), examples, spec)
  found = kind.metrics(said, records, spec)
  assert found["exact_match"] > 0.999 and found["f1"] > 0.9995
  assert len({one["id"] for one in said}) == len(records)
