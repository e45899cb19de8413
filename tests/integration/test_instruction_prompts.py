"""A folder that was fine-tuned on instructions: what reaches the model is what it learned."""

import io
import json
import shutil

import pytest
import transformers

import gptneo_jax
from gptneo_jax import convert, data, generate
from gptneo_jax.errors import UserError
from gptneo_jax.evals import qa_eval
from gptneo_jax.examples import TaskSpec, instruction, task_file
from gptneo_jax.examples.records import Record
from gptneo_jax.generation import api
from tests.helpers.text_models import TINY, make, make_tokenizer

QUESTION = "the <|endoftext|> fox? "
TEMPLATES = ("plain", "alpaca", "chat", r"Q: {question}\nA: {answer}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A tiny model at random, with each of the templates."""
  found = {}
  lm = make(TINY.replace(max_position_embeddings=512), tokenizer=make_tokenizer())
  for number, template in enumerate(TEMPLATES):
    folder = tmp_path_factory.mktemp("instructed") / str(number)
    lm.save(str(folder))
    settings = {"template": template, "loss_on": "answer"}
    task_file.save(folder, TaskSpec("instruction", 512, settings=settings))
    found[template] = str(folder)
  return found


@pytest.fixture
def sent(monkeypatch):
  """The ids of all prompts that reach the model."""
  found, make_request = [], api.make_request

  def spy(model, prompts, options, seed):
    found.extend(prompts.rows)
    return make_request(model, prompts, options, seed)

  monkeypatch.setattr(api, "make_request", spy)
  return found


def typed(text):
  return io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")


def learned_parts(lm, fields):
  """The ids of a training example that do not count, and those that do."""
  encoder = data.DocumentEncoder(lm.tokenizer)
  (example,) = instruction.encode([Record(fields, "f:1")], lm.task, encoder, labelled=True)
  (ids,), (targets,) = example.sequences, example.tokens["targets"]
  prompt = 1 + int((example.tokens["weights"][0] == 0).sum())
  return ids[:prompt].tolist(), targets[prompt - 1 :].tolist()


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_have_the_ids_of_training(folders, sent, monkeypatch, tmp_path, capsys, template):
  lm = gptneo_jax.load(folders[template])
  prompt, _ = learned_parts(lm, {"question": QUESTION, "answer": "the dog"})
  argv = ["--checkpoint", folders[template], "--max_new_tokens", "2"]
  file = tmp_path / "prompts.jsonl"
  lines = [QUESTION, {"question": QUESTION}, {"messages": [{"role": "user", "content": QUESTION}]}]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  answers = tmp_path / "answers.jsonl"
  answers.write_text(json.dumps({"prompt": QUESTION, "reference": "the dog"}))
  monkeypatch.setattr("sys.stdin", typed(QUESTION + "\n"))

  generate.main([*argv, "--prompt", QUESTION])
  generate.main([*argv, "--prompt", QUESTION, "--output", "stream"])
  generate.main([*argv, "--prompts", str(file), "--output", "jsonl"])
  generate.main([*argv, "--chat"])
  qa_eval.evaluate(lm, str(answers), max_new_tokens=2)
  made = lm.generate([lm.prompt_ids(QUESTION)], max_new_tokens=2)
  assert sent == [prompt] * 8

  answer = instruction.answer_of(made.texts[0], lm.task)
  first, second, *rows, said, _ = capsys.readouterr().out.split("\n")
  assert first == second == said == answer
  assert [json.loads(row)["text"] for row in rows] == [answer] * 3
  assert [json.loads(row)["prompt"] for row in rows] == lines

  generate.main([*argv, "--prompt", QUESTION, "--raw"])
  assert sent[-1] == lm.tokenizer(QUESTION).input_ids
  monkeypatch.setattr("sys.stdin", typed(QUESTION + "\n"))
  generate.main([*argv, "--chat", "--chat_format", "{message}>{answer}"])
  assert sent[-1] == lm.tokenizer(QUESTION + ">").input_ids


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_talk_is_what_several_turns_are_in_training(folders, sent, monkeypatch, template):
  lm = gptneo_jax.load(folders[template])
  monkeypatch.setattr("sys.stdin", typed("the fox\nthe dog\n"))

  def answered(self, prompt, **options):
    sent.append(prompt[0])
    yield from ([" "] if self.task.settings["template"] == "chat" else []) + ["the", " lazy"]

  monkeypatch.setattr(type(lm), "stream", answered)
  generate.main(["--checkpoint", folders[template], "--chat"])
  messages = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant") * 2, ("the fox", "the lazy", "the dog", "the lazy"))
  ]
  asked = lm.prompt_ids(messages[:-1])
  assert sent == [lm.prompt_ids("the fox"), asked]
  if "question" not in template:
    spec = lm.task
    encoder = data.DocumentEncoder(lm.tokenizer)
    record = Record({"messages": messages}, "f:1")
    (example,) = instruction.encode([record], spec, encoder, labelled=True)
    assert example.sequences[0][: len(asked)].tolist() == asked


def test_the_oldest_turns_are_forgotten(folders, sent, monkeypatch, capsys):
  lm = gptneo_jax.load(folders["chat"])
  message = "the lazy dog " * 20
  monkeypatch.setattr("sys.stdin", typed(f"{message}\n" * 4 + "the dog " * 300 + "\nfox\n"))
  monkeypatch.setattr(
    type(lm), "stream", lambda self, prompt, **options: iter(sent.append(prompt[0]) or ["it"])
  )
  generate.main(["--checkpoint", folders["chat"], "--chat", "--max_new_tokens", "100"])
  assert len(sent[0]) < len(sent[1]) < len(sent[2]) == len(sent[3]) <= 412
  assert "412 is the most; shorten it" in capsys.readouterr().err


def test_answers_end_with_the_end_of_text(folders):
  """Which is learned, so it ends them; pad is of the same id."""
  lm = gptneo_jax.load(folders["chat"])
  _, answer = learned_parts(lm, {"question": "fox?", "answer": "the dog"})
  assert answer[-1] == lm.tokenizer.eos_token_id == data.find_end_of_text(lm.tokenizer)


def test_the_task_stays_with_the_model(folders, tmp_path):
  lm = gptneo_jax.load(folders["chat"])
  lm.save(str(tmp_path / "copy"))
  again = gptneo_jax.load(str(tmp_path / "copy"))
  assert again.task == lm.task and again.has_template
  assert again.prompt_ids("fox") == lm.prompt_ids("fox")


@pytest.mark.parametrize("template", TEMPLATES)
def test_exported_the_chat_template_gives_the_same_ids(folders, tmp_path, template):
  lm = gptneo_jax.load(folders[template])
  convert.main(["orbax-to-hf", folders[template], str(tmp_path / "hf")])
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
  messages = [{"role": "user", "content": "the lazy dog?"}]
  ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
  assert ids == lm.prompt_ids(messages)
  assert gptneo_jax.load(str(tmp_path / "hf")).prompt_ids(messages) == ids


def test_a_template_that_transformers_has_no_form_for(folders, tmp_path, capsys):
  shutil.copytree(folders["plain"], tmp_path / "ours")
  spec = gptneo_jax.load(folders["plain"]).task.replace(
    settings={"template": "{title}: {question} {answer}", "loss_on": "answer"}
  )
  task_file.save(tmp_path / "ours", spec)
  convert.main(["orbax-to-hf", str(tmp_path / "ours"), str(tmp_path / "hf")])
  assert "without a chat template: the template has the fields title" in capsys.readouterr().err
  assert "chat_template" not in (tmp_path / "hf/tokenizer_config.json").read_text()


def test_what_has_no_template():
  lm = make(tokenizer=make_tokenizer())
  assert lm.task is None
  with pytest.raises(UserError, match="was not fine-tuned on instructions, so it has no template"):
    lm.prompt_ids("fox")


def test_bad_prompts(folders, tmp_path):
  file = tmp_path / "p.jsonl"
  argv = ["--checkpoint", folders["chat"], "--prompts", str(file)]
  for line, message in (
    ({"q": "fox"}, r"p.jsonl:1: no prompt with its answer; .* Its fields are: q"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, r"p.jsonl:1: message 1 is the assist"),
    (" ", r"p.jsonl:1: the prompt is empty"),
  ):
    file.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
      generate.main(argv)
