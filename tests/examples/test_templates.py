"""Templates: their texts, the seam between prompt and answer, transformers' chat templates."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptneo_jax import data
from gptneo_jax.errors import UserError
from gptneo_jax.examples import templates
from gptneo_jax.examples.conversations import Conversation, Turn, of_prompt
from gptneo_jax.examples.templates import Template

OWN = r"Q: {question}\nA: {answer}"
ALL = ("plain", "alpaca", "chat", OWN)
TOKENIZERS = ("gpt2_tokenizer", "checkpoints/neo_docs_hf")

# Texts that tokenizers trip over: white space at the ends, special tokens, halves of words.
odd_texts = st.one_of(
  st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
  st.lists(
    st.sampled_from(
      [" ", "\n", "\t", "  ", "don", "'t", "Paris", "<|endoftext|>", "{answer}", "é", "☂", "1", ":"]
    ),
    min_size=1,
    max_size=6,
  ).map("".join),
).filter(str.strip)


@functools.cache
def loaded(folder):
  tokenizer = data.load_tokenizer(str(folder))
  return tokenizer, data.DocumentEncoder(tokenizer)


def talk(*texts, system="", answered=True):
  """A conversation of messages and answers in turns."""
  turns = [
    Turn(of_prompt(message).turns[0].fields, answer)
    for message, answer in zip(texts[::2], [*texts[1::2], *([] if answered else [None])])
  ]
  return Conversation(tuple(turns), system)


def written(name, conversation):
  template = Template.parse(name)
  prompts = list(template.prompts(conversation))
  return [
    (prompt, None if turn.answer is None else template.lead + turn.answer)
    for prompt, turn in zip(prompts, conversation.turns)
  ]


def test_texts_of_the_templates_with_names():
  once = talk("Who?", "Me.")
  assert written("plain", once) == [("Who?\n", "Me.")]
  assert written("chat", once) == [("User: Who?\nAssistant:", " Me.")]
  assert written("alpaca", once) == [
    (
      "Below is an instruction that describes a task. Write a response that appropriately completes"
      " the request.\n\n### Instruction:\nWho?\n\n### Response:\n",
      "Me.",
    )
  ]
  twice = talk("Hi", "Hello", "Who?", "Me.", system="Be short.")
  assert written("chat", twice) == [
    ("System: Be short.\nUser: Hi\nAssistant:", " Hello"),
    ("User: Who?\nAssistant:", " Me."),
  ]


def test_alpaca_with_an_input():
  fields = {"message": "Add.\n1 2", "instruction": "Add.", "input": "1 2"}
  ((prompt, _),) = written("alpaca", Conversation((Turn(fields, "3"),)))
  assert prompt == (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "Add.\n\n### Input:\n1 2\n\n### Response:\n"
  )
  ((prompt, _),) = written("chat", Conversation((Turn(fields, "3"),)))
  assert prompt == "User: Add.\n1 2\nAssistant:"


def test_templates_of_ones_own():
  assert Template.parse(r"Q: {message}\nA:") == Template("Q: {message}\nA:", lead=" ")
  assert Template.parse(r"Q: {message}\nA: {answer}") == Template("Q: {message}\nA:", lead=" ")
  assert Template.parse("{message}\n") == Template("{message}\n")
  own = r"{question}\n> {answer}\n---\n"
  assert written(own, talk("a", "b", "c", "d")) == [("a\n>", " b"), ("\n---\nc\n>", " d")]
  braces = r'{"q": "{question}", "a": "{answer}"}'
  assert written(braces, talk("{answer}", "{x}")) == [('{"q": "{answer}", "a": "', "{x}")]


@pytest.mark.parametrize("text", ["alpacca", "", "{answer}", "Q: A:", "{message}{answer}{answer}"])
def test_what_is_no_template(text):
  with pytest.raises(UserError, match="it is one of plain, alpaca, chat, or a text such as"):
    Template.parse(text)


def test_a_field_that_is_not_there():
  template = Template.parse("{questoin} {answer}")
  with pytest.raises(ValueError, match=r"asks for {questoin}; did you mean question\?; there is"):
    list(template.prompts(talk("a", "b")))


@pytest.mark.parametrize("folder", TOKENIZERS)
@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=60)
@given(st.lists(odd_texts, min_size=2, max_size=4), st.sampled_from(["", "Be short.", "a\n"]))
def test_no_token_spans_a_seam(shared_data, folder, name, texts, system):
  """The ids of a prompt are those of the training example, whatever the answer is."""
  tokenizer, encoder = loaded(shared_data / folder)
  template = Template.parse(name)
  answered = len(texts) % 2 == 0
  asked = talk(*texts[: -1 if answered else None], system=system, answered=False)
  learned = talk(*texts, *([] if answered else ["answer"]), system=system)
  used, trained = templates.encode(template, [asked, learned], encoder)
  assert len(trained) == len(used) + 1
  for one, other in zip(used, trained):
    np.testing.assert_array_equal(one, other)
  for part, (text, end) in zip(
    trained, [(t, e) for pair in written(name, learned) for t, e in zip(pair, (False, True))]
  ):
    ids = part[:-1] if end else part
    assert (encoder.end_of_text not in ids) and (not end or part[-1] == encoder.end_of_text)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("folder", TOKENIZERS)
@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.text(st.characters(codec="utf-8"), max_size=12).filter(str.strip), min_size=3, max_size=3
  ),
  st.booleans(),
)
def test_transformers_writes_the_same(shared_data, folder, name, texts, system):
  """apply_chat_template of an exported tokenizer, with and without the last answer."""
  tokenizer, encoder = loaded(shared_data / folder)
  template = Template.parse(name)
  message, answer, last = texts
  if name != "chat":  # white space beside the seam belongs to it where all is encoded as one text
    message, answer, last = (f"x{text}x" for text in texts)
  roles = [("user", message), ("assistant", answer), ("user", last), ("assistant", "Yes.")]
  roles = [("system", "Be short."), *roles] if system else roles
  messages = [{"role": role, "content": text} for role, text in roles]
  conversation = talk(message, answer, last, "Yes.", system="Be short." if system else "")
  (parts,) = templates.encode(template, [conversation], encoder)
  apply = functools.partial(
    tokenizer.apply_chat_template, chat_template=template.jinja(), return_dict=False
  )
  assert apply(messages) == np.concatenate(parts).tolist()
  asked = apply(messages[:-1], add_generation_prompt=True)
  assert asked == np.concatenate(parts[:-1]).tolist()


def test_a_template_that_messages_cannot_fill():
  with pytest.raises(ValueError, match="the template has the fields title, question"):
    Template.parse("{title} {question} {answer}").jinja()


def test_the_oldest_turns_go_first(shared_data):
  _, encoder = loaded(shared_data / "gpt2_tokenizer")
  template = Template.parse("chat")
  whole = talk("one", "1", "two", "2", "three", answered=False, system="Be short.")
  lengths = [
    sum(map(len, templates.fitted(template, whole, encoder, most))) for most in (100, 30, 20, 1)
  ]
  assert lengths == [28, 28, 20, 12]
  shortest = talk("three", answered=False, system="Be short.")
  (expected,) = templates.encode(template, [shortest], encoder)
  np.testing.assert_array_equal(templates.fitted(template, whole, encoder, 1), expected)
