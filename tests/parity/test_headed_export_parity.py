"""Fine-tuned folders, exported by `convert`, predict in transformers what `lm.predict` does here.

The weights are random and spread. There, each text is encoded by the exported tokenizer and read
by transformers' class; what becomes of its outputs is computed from the definition.
"""

import copy
import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import gptneo_jax  # noqa: E402
from gptneo_jax import convert  # noqa: E402
from gptneo_jax.examples import task_file  # noqa: E402
from gptneo_jax.examples.task_file import TaskSpec  # noqa: E402
from gptneo_jax.train import run  # noqa: E402
from gptneo_jax.training import run_config, tasks  # noqa: E402
from gptneo_jax.training.example_task import add_tokens  # noqa: E402
from tests.helpers import hf_models  # noqa: E402
from tests.helpers.packed_checks import params_of, small_model  # noqa: E402
from tests.helpers.small_tokenizers import trained_tokenizer  # noqa: E402

pytestmark = [
  pytest.mark.parity,
  pytest.mark.filterwarnings("ignore"),  # PEFT's of GPT-2's Conv1D
]

LABELS = ("no", "yes", "maybe")
TEXTS = [
  "The quick brown fox jumps over the lazy dog.", "Olá, mundo: ação e coração.", "dog",
  "the lazy dog the lazy dog the lazy dog", "fox, fox and 42 foxes",
]  # fmt: skip
PAIRS = list(zip(TEXTS, [*TEXTS[1:], "so"]))
SETTINGS = {"stride": 8, "max_answer_tokens": 5, "no_answer_threshold": 0.0, "template": "chat"}


def save(folder, spec, head, family="gpt_neo", **fields):
  """A folder of ours as a run leaves it, with the settings that training derives from its data."""
  tokenizer = copy.deepcopy(trained_tokenizer())
  task = tasks.find(spec.task)
  spec = spec.replace(tokens=add_tokens(tokenizer, task.kind.added_tokens(spec)), settings=SETTINGS)
  pattern = ("global", "local") if family == "gpt_neo" else ("global",)
  model = small_model(head, 320, model_type=family, attention_pattern=pattern, **fields)
  settings = task.model_settings(run_config.base(model), spec, tokenizer)
  model = model.replace(initializer_range=0.2, **settings)
  lm = gptneo_jax.init(model, seed=0)
  lm.params = params_of(model)
  lm.tokenizer = tokenizer
  lm.save(str(folder))
  task_file.save(folder, spec)
  return str(folder)


def exported(folder, tmp_path, family, head):
  """transformers' model and tokenizer, and both folders opened here."""
  assert convert.main(["orbax-to-hf", folder, str(tmp_path / "hf")]) == 0
  hf = hf_models.CLASSES[family][head].from_pretrained(
    tmp_path / "hf", attn_implementation="eager"
  ).eval()  # fmt: skip
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  return hf, tokenizer, gptneo_jax.load(folder), gptneo_jax.load(str(tmp_path / "hf"))


def close(said, expected, tolerance=1e-4):
  """The same, numbers to the tolerance."""
  if isinstance(expected, dict):
    assert said.keys() == expected.keys()
    for key in expected:
      close(said[key], expected[key], tolerance)
  elif isinstance(expected, list):
    assert len(said) == len(expected)
    for one, other in zip(said, expected):
      close(one, other, tolerance)
  elif isinstance(expected, float):
    assert said == pytest.approx(expected, abs=tolerance)
  else:
    assert said == expected


def ids_of(tokenizer, text):
  return torch.tensor([tokenizer(text).input_ids])


@torch.no_grad()
def logits_of(hf, ids):
  return hf(input_ids=torch.as_tensor(ids)).logits.double()


def with_names(hf, chances):
  return dict(zip((hf.config.id2label[n] for n in range(len(chances))), chances.tolist()))


# --- one test for each head -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_one_label(family, tmp_path):
  spec = TaskSpec(
    "sequence_classification", 64, 64, labels=LABELS, problem="single_label_classification"
  )
  folder = save(tmp_path / "ours", spec, "sequence_classification", family)
  hf, tokenizer, lm, again = exported(folder, tmp_path, family, "sequence_classification")
  said = lm.predict(TEXTS)
  close(again.predict(TEXTS), said, 1e-6)
  assert again.task == lm.task
  assert len({one["label"] for one in said}) > 1, "weights that tell nothing apart"
  for text, one in zip(TEXTS, said):
    chances = with_names(hf, logits_of(hf, ids_of(tokenizer, text))[0].softmax(-1))
    close(one, {"label": max(chances, key=chances.get), "probabilities": chances})
  # Padded to a batch, by the id that the export gives.
  tokenizer.pad_token = tokenizer.convert_ids_to_tokens(hf.config.pad_token_id)
  pipe = transformers.pipeline("text-classification", hf, tokenizer=tokenizer, batch_size=5)
  for one, each in zip(said, pipe(TEXTS)):
    assert each["label"] == one["label"]
    assert each["score"] == pytest.approx(one["probabilities"][one["label"]], abs=1e-4)


def test_several_labels(tmp_path):
  spec = TaskSpec(
    "sequence_classification", 64, 64, labels=LABELS, problem="multi_label_classification"
  )
  folder = save(tmp_path / "ours", spec, "sequence_classification")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "sequence_classification")
  assert hf.config.problem_type == "multi_label_classification"
  said = lm.predict(TEXTS)
  close(again.predict(TEXTS), said, 1e-6)
  for text, one in zip(TEXTS, said):
    chances = with_names(hf, logits_of(hf, ids_of(tokenizer, text))[0].sigmoid())
    chosen = [name for name, chance in chances.items() if chance >= 0.5]
    close(one, {"labels": chosen, "probabilities": chances})


def test_a_value(tmp_path):
  spec = TaskSpec("sequence_classification", 64, 64, problem="regression")
  folder = save(tmp_path / "ours", spec, "sequence_classification")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "sequence_classification")
  said = lm.predict(TEXTS)
  close(again.predict(TEXTS), said, 1e-6)
  for text, one in zip(TEXTS, said):
    close(one, {"value": logits_of(hf, ids_of(tokenizer, text)).item()})


def pair_logits(hf, tokenizer, first, second):
  """The special tokens of the pair are written out: the exported tokenizer knows them."""
  return logits_of(hf, ids_of(tokenizer, f"<|start|>{first}<|delimiter|>{second}<|extract|>"))[0]


@pytest.mark.parametrize("both_orders", [False, True])
def test_pairs(both_orders, tmp_path, monkeypatch):
  monkeypatch.setitem(SETTINGS, "both_orders", both_orders)
  spec = TaskSpec("sentence_pairs", 96, 192, labels=LABELS, problem="single_label_classification")
  folder = save(tmp_path / "ours", spec, "sequence_classification")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "sequence_classification")
  assert len(tokenizer) == hf.config.vocab_size == 323
  given = [{"first": first, "second": second} for first, second in PAIRS]
  said = lm.predict(given)
  close(again.predict(given), said, 1e-6)
  for (first, second), one in zip(PAIRS, said):
    logits = pair_logits(hf, tokenizer, first, second)
    if both_orders:
      logits = logits + pair_logits(hf, tokenizer, second, first)
    chances = with_names(hf, logits.softmax(-1))
    close(one, {"label": max(chances, key=chances.get), "probabilities": chances})


def test_tokens(tmp_path):
  labels = ("O", "B-A", "I-A")
  spec = TaskSpec("token_classification", 64, 64, labels=labels)
  folder = save(tmp_path / "ours", spec, "token_classification")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "token_classification")
  given = [{"tokens": text.split()} for text in TEXTS]
  said = lm.predict(given)
  close(again.predict(given), said, 1e-6)
  for one, fields in zip(said, given):
    words = [tokenizer(f" {word}").input_ids for word in fields["tokens"]]
    firsts = np.cumsum([0, *map(len, words[:-1])])
    chances = logits_of(hf, [[*itertools.chain(*words)]])[0, firsts].softmax(-1)
    assert one["labels"] == [hf.config.id2label[n] for n in chances.argmax(-1).tolist()]
    close(one["probabilities"], chances.max(-1).values.tolist())


def test_spans(tmp_path):
  spec = TaskSpec("question_answering", 64, 64)
  folder = save(tmp_path / "ours", spec, "question_answering")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "question_answering")
  given = [{"question": "Who?", "context": text} for text in TEXTS]
  said = lm.predict(given)
  close(again.predict(given), said, 1e-6)
  for text, one in zip(TEXTS, said):
    prefix = tokenizer("Who?").input_ids + tokenizer("\n").input_ids
    ids = [*prefix, *tokenizer(text).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
      outputs = hf(input_ids=torch.tensor([ids]))
    start, end = (x[0].double().numpy() for x in (outputs.start_logits, outputs.end_logits))
    spans = [
      (first, last)
      for first in range(len(prefix), len(ids) - 1)
      for last in range(first, min(first + SETTINGS["max_answer_tokens"], len(ids) - 1))
    ]
    scores = np.array([start[first] + end[last] for first, last in spans] + [start[-1] + end[-1]])
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert one["no_answer_probability"] == pytest.approx(chances[-1], abs=1e-4)
    best = int(chances[:-1].argmax())
    assert one["n_best"][0]["probability"] == pytest.approx(chances[best], abs=1e-4)
    first, last = spans[best]
    answer = tokenizer.decode(ids[first : last + 1]).strip()
    assert one["n_best"][0]["answer"] == answer
    assert one["answer"] == ("" if chances[-1] > chances[best] else answer)


CHOICES = [
  {"question": "What jumps?", "choices": ["the fox", "a dog", "coração"]},
  {"question": "Quem?", "choices": ["dog", "the quick brown fox jumps over the lazy dog"]},
  {"question": "The lazy dog jumps over", "choices": ["a", "b", "fox", "mundo"]},
]


def choice_scores(hf, tokenizer, fields):
  texts = [
    f"<|start|>{fields['question']}<|delimiter|>{choice}<|extract|>" for choice in fields["choices"]
  ]
  if hf.config.model_type == "gpt_neo":
    return torch.cat([logits_of(hf, ids_of(tokenizer, text))[:, 0] for text in texts])
  tokenizer.pad_token = tokenizer.eos_token
  batch = tokenizer(texts, padding=True, return_tensors="pt")
  with torch.no_grad():
    return hf(
      input_ids=batch.input_ids[None], mc_token_ids=batch.attention_mask.sum(-1)[None] - 1
    ).mc_logits[0].double()  # fmt: skip


@pytest.mark.parametrize(
  ("family", "head"), [("gpt_neo", "sequence_classification"), ("gpt2", "double_heads")]
)
def test_choices(family, head, tmp_path):
  folder = save(tmp_path / "ours", TaskSpec("multiple_choice", 64, 256), head, family)
  hf, tokenizer, lm, again = exported(folder, tmp_path, family, head)
  said = lm.predict(CHOICES)
  close(again.predict(CHOICES), said, 1e-6)
  for fields, one in zip(CHOICES, said):
    chances = choice_scores(hf, tokenizer, fields).softmax(-1).tolist()
    choice = int(np.argmax(chances))
    expected = {"choice": choice, "text": fields["choices"][choice], "probabilities": chances}
    close(one, expected)


def test_answers(tmp_path):
  """The exported tokenizer's chat template writes the prompt, and generation goes on alike."""
  folder = save(tmp_path / "ours", TaskSpec("instruction", 64, 64), "lm")
  hf, tokenizer, lm, again = exported(folder, tmp_path, "gpt_neo", "lm")
  ids = lm.prompt_ids("What jumps over the lazy dog?")
  messages = [{"role": "user", "content": "What jumps over the lazy dog?"}]
  theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
  assert theirs == ids == again.prompt_ids(messages)
  ours = np.asarray(lm.logits([ids]))
  assert np.abs(ours - logits_of(hf, [ids]).numpy()).max() <= 1e-4
  np.testing.assert_allclose(again.logits([ids]), ours, atol=1e-6)


# --- adapters -------------------------------------------------------------------------------------


def lora_run(tmp_path, task, head, family, lines):
  """A few steps of LoRA from a language model without the task's tokens and head."""
  pattern = ("global", "local") if family == "gpt_neo" else ("global",)
  model = small_model("lm", 320, model_type=family, attention_pattern=pattern)
  start = gptneo_jax.init(model.replace(max_position_embeddings=128, initializer_range=0.2))
  start.params = params_of(start.config)
  start.tokenizer = copy.deepcopy(trained_tokenizer())
  start.save(str(tmp_path / "start"))
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
  config = run_config.finetune(task, "lora").unlock()
  config.model.head = head
  config.update(init_from=str(tmp_path / "start"), seq_len=128, batch_size=2, epochs=4.0)
  config.data.update(path=str(path), validation_fraction=0.2)
  config.optimizer.learning_rate = 2e-2
  assert run(config.lock(), str(tmp_path / "run")) == 0
  return str(tmp_path / "run")


@pytest.mark.parametrize(
  ("family", "task", "head"),
  [
    ("gpt_neo", "sentence_pairs", "sequence_classification"),
    ("gpt2", "multiple_choice", "double_heads"),
  ],
)
def test_adapters_merged_and_alone(family, task, head, tmp_path):
  peft = pytest.importorskip("peft")
  if task == "sentence_pairs":
    given = [{"first": first, "second": second} for first, second in PAIRS]
    lines = [{**one, "label": LABELS[n % 2]} for n, one in enumerate(given)] * 4
    lines = [{**one, "first": f"{n} {one['first']}"} for n, one in enumerate(lines)]
  else:
    given = CHOICES
    lines = [{**one, "question": f"{n} {one['question']}", "answer": n % 2}
             for n, one in enumerate(CHOICES * 6)]  # fmt: skip
  folder = lora_run(tmp_path, task, head, family, lines)
  merged, tokenizer, lm, again = exported(folder, tmp_path, family, head)
  said = lm.predict(given)
  close(again.predict(given), said, 1e-6)

  base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
  assert convert.main(["orbax-to-hf", f"{folder}/base", base, "--no_tokenizer"]) == 0
  assert convert.main(["orbax-to-hf", folder, adapter, "--adapter_only"]) == 0
  plain = type(merged).from_pretrained(base, attn_implementation="eager")
  plain_said = chances_of(plain, tokenizer, given)
  adapted = peft.PeftModel.from_pretrained(plain, adapter).eval()
  expected = [list_of(one["probabilities"]) for one in said]
  assert np.abs(np.concatenate(plain_said) - np.concatenate(expected)).max() > 1e-2
  for hf in (merged, adapted):
    close(chances_of(hf, tokenizer, given), expected)


def list_of(probabilities):
  return list(probabilities.values()) if isinstance(probabilities, dict) else probabilities


def chances_of(hf, tokenizer, given):
  """The probabilities of pairs or choices, by transformers."""
  if "choices" in given[0]:
    logits = [choice_scores(hf, tokenizer, one) for one in given]
  else:
    logits = [pair_logits(hf, tokenizer, one["first"], one["second"]) for one in given]
  return [one.softmax(-1).tolist() for one in logits]
