"""The server as its clients see it: a real process, OpenAI's client, LangChain, curl."""

import json
import re
import subprocess

import numpy as np
import openai
import pytest

from tests.helpers.served import POSITIONS, PROMPT, curl

# --- completions ----------------------------------------------------------------------------------


def test_it_says_what_it_serves(server, client):
  assert "serving fox at http://127.0.0.1:" in server.said and "MiB of weights" in server.said
  assert [model.id for model in client.models.list()] == ["fox"]
  assert client.models.retrieve("fox").max_model_len == POSITIONS


@pytest.mark.parametrize(
  "asked, options",
  [
    ({"temperature": 0}, {}),
    ({"seed": 7}, {"do_sample": True, "top_k": 0, "seed": 7}),
    (
      {"seed": 3, "temperature": 1.5, "top_p": 0.9, "presence_penalty": 0.5},
      {"seed": 3, "do_sample": True, "top_k": 0, "temperature": 1.5, "top_p": 0.9,
       "presence_penalty": 0.5},
    ),
    (
      {"temperature": 0, "extra_body": {"no_repeat_ngram_size": 2}, "logit_bias": {"9": -3}},
      {"no_repeat_ngram_size": 2, "sequence_bias": [[[9], -3.0]]},
    ),
  ],
)  # fmt: skip
def test_the_text_is_that_of_generate(client, lm, asked, options):
  made = client.completions.create(model="fox", prompt=PROMPT, max_tokens=20, **asked)
  expected = lm.generate(PROMPT, max_new_tokens=20, **options)
  assert made.choices[0].text == expected.texts[0]
  assert made.object == "text_completion" and made.model == "fox"
  usage = made.usage
  assert usage.prompt_tokens == len(lm.tokenizer(PROMPT).input_ids)
  assert usage.completion_tokens == expected.lengths[0]
  assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
  pieces = list(
    client.completions.create(
      model="fox", prompt=PROMPT, max_tokens=20, stream=True,
      stream_options={"include_usage": True}, **asked,
    )
  )  # fmt: skip
  assert "".join(piece.choices[0].text for piece in pieces[:-1]) == expected.texts[0]
  assert len(pieces) > 2 and {piece.object for piece in pieces} == {"text_completion"}
  assert pieces[-1].choices == [] and pieces[-1].usage == usage.model_copy(
    update={"prompt_tokens_details": pieces[-1].usage.prompt_tokens_details}
  )
  reasons = [piece.choices[0].finish_reason for piece in pieces[:-1]]
  assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] in ("stop", "length")


def test_many_prompts_in_every_form(client, lm):
  texts = ["the quick", "fox", "over the lazy dog"]
  ids = [lm.tokenizer(text).input_ids for text in texts]
  ask = lambda prompt, **more: [
    choice.text
    for choice in client.completions.create(
      model="fox", prompt=prompt, max_tokens=9, temperature=0, **more
    ).choices
  ]
  expected = [lm.generate(text, max_new_tokens=9).texts[0] for text in texts]
  assert ask(texts) == ask(ids) == expected
  assert ask(texts[1]) == ask(ids[1]) == expected[1:2]
  assert ask(texts, n=2) == [text for text in expected for _ in range(2)]


def test_several_of_one_prompt(client, lm):
  made = client.completions.create(
    model="fox", prompt=PROMPT, n=3, best_of=6, max_tokens=8, seed=1, logprobs=0
  )
  all_six = lm.generate(
    [PROMPT], num_return_sequences=6, do_sample=True, top_k=0, max_new_tokens=8, seed=1
  )
  means = [np.mean(choice.logprobs.token_logprobs) for choice in made.choices]
  assert [choice.index for choice in made.choices] == [0, 1, 2]
  assert means == sorted(means, reverse=True)
  assert {choice.text for choice in made.choices} <= set(all_six.texts)
  assert made.usage.prompt_tokens == len(lm.tokenizer(PROMPT).input_ids)


def test_stop_strings(client, lm):
  free = lm.generate(PROMPT, max_new_tokens=30, do_sample=True, top_k=0, seed=2).texts[0]
  stop = next(word for word in free.split()[1:] if word.isascii())
  for stream in (False, True):
    made = client.completions.create(
      model="fox", prompt=PROMPT, max_tokens=30, seed=2, stop=[stop, "never☂"], stream=stream
    )
    choices = [piece.choices[0] for piece in made] if stream else made.choices
    assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_logprobs_of_prompt_and_answer(client, lm):
  """`echo` with log-probabilities: what lm-eval scores by."""
  ids = lm.tokenizer(PROMPT).input_ids
  made = client.completions.create(
    model="fox", prompt=ids, max_tokens=2, echo=True, logprobs=3, temperature=0
  ).choices[0]
  new = lm.generate([ids], max_new_tokens=2).sequences[0].tolist()
  logits = np.asarray(lm.logits([new]), np.float64)[0]
  log_TxV = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  found = made.logprobs
  assert found.token_logprobs[0] is found.top_logprobs[0] is None
  expected = log_TxV[np.arange(len(new) - 1), new[1:]]
  np.testing.assert_allclose(found.token_logprobs[1:], expected, atol=2e-5)
  assert made.text.startswith(PROMPT) and len(found.tokens) == len(new)
  for place, best in enumerate(found.top_logprobs[1:]):
    assert 3 <= len(best) <= 4
    np.testing.assert_allclose(max(best.values()), log_TxV[place].max(), atol=2e-5)
  # The two greedy tokens have the very float of the best alternative.
  assert [found.token_logprobs[n] == max(found.top_logprobs[n].values()) for n in (-2, -1)] == [
    True, True,
  ]  # fmt: skip
  for place, token in list(zip(found.text_offset, found.tokens))[: len(ids)]:
    assert made.text[place:].startswith(token)
  only = client.completions.create(model="fox", prompt=ids, max_tokens=0, echo=True, logprobs=1)
  assert only.choices[0].text == PROMPT and only.usage.completion_tokens == 0
  np.testing.assert_allclose(
    only.choices[0].logprobs.token_logprobs[1:], found.token_logprobs[1 : len(ids)], atol=1e-6
  )


# --- chat -----------------------------------------------------------------------------------------


def test_chat(client, lm):
  messages = [
    {"role": "system", "content": "be quick"},
    {"role": "user", "content": "fox"},
    {"role": "assistant", "content": "dog"},
    {"role": "user", "content": [{"type": "text", "text": "the"}]},
  ]
  written = "be quick\nUser: fox\nAssistant: dog\nUser: the\nAssistant:"
  expected = lm.generate(written, max_new_tokens=12, do_sample=True, top_k=0, seed=4).texts[0]
  ask = lambda **more: client.chat.completions.create(
    model="fox", messages=messages, max_completion_tokens=12, seed=4, **more
  )
  made = ask(logprobs=True, top_logprobs=2)
  choice = made.choices[0]
  assert choice.message.content == expected.removeprefix(" ") and made.object == "chat.completion"
  assert len(choice.logprobs.content) == made.usage.completion_tokens
  assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)
  pieces = list(ask(stream=True))
  deltas = [piece.choices[0].delta for piece in pieces]
  assert deltas[0].role == "assistant" and {piece.object for piece in pieces} == {
    "chat.completion.chunk"
  }
  assert "".join(delta.content or "" for delta in deltas) == choice.message.content
  assert pieces[-1].choices[0].finish_reason == "length" and deltas[-1].content is None


def test_the_next_turn_reads_only_what_is_new(client):
  said = client.completions.create(model="fox", prompt="over the lazy", max_tokens=9, temperature=0)
  ask = client.completions.create(model="fox", prompt="over the lazy", max_tokens=9, temperature=0)
  assert ask.choices[0].text == said.choices[0].text
  assert ask.usage.prompt_tokens_details.cached_tokens == ask.usage.prompt_tokens - 1


def test_langchain(server, lm):
  from langchain_openai import ChatOpenAI, OpenAI

  at = {"base_url": f"{server.url}/v1", "api_key": "secret", "model": "fox", "max_retries": 0}
  text = OpenAI(temperature=0, max_tokens=8, **at).invoke(PROMPT)
  assert text == lm.generate(PROMPT, max_new_tokens=8).texts[0]
  chat = ChatOpenAI(temperature=0, max_tokens=8, **at)
  answer = chat.invoke("the fox")
  assert answer.usage_metadata["output_tokens"] == 8
  assert "".join(piece.content for piece in chat.stream("the fox")) == answer.content


# --- what is refused ------------------------------------------------------------------------------

LONG = {"prompt": [5] * POSITIONS, "max_tokens": 2}


@pytest.mark.parametrize(
  "path, body, status, message, param, code",
  [
    ("completions", "{", 400, "not JSON", None, None),
    ("completions", "[]", 400, "no JSON object", None, None),
    ("completions", '{"temperature": NaN}', 400, "NaN is no number", None, None),
    ("completions", '{"temperature": 1e999}', 400, "temperature", "temperature", None),
    ("completions", {"prompt": "a", "max_tokens": -1}, 400, "max_tokens", "max_tokens", None),
    ("completions", {"prompt": []}, 400, "there is no prompt", "prompt", None),
    ("completions", {"prompt": [999]}, 400, "prompt hold 999", "prompt", None),
    ("completions", {"prompt": {"a": 1}}, 400, "prompt", "prompt", None),
    ("completions", LONG, 400, "2 too many", "prompt", "context_length_exceeded"),
    ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix", "suffix",
     "unsupported_parameter"),
    ("completions", {"prompt": "a", "num_beams": 3}, 400, "num_beams", "num_beams",
     "unsupported_parameter"),
    ("completions", {"prompt": "a", "stop": [""]}, 400, "is empty", "stop", None),
    ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, "no id", "logit_bias", None),
    ("completions", {"prompt": "a", "logit_bias": {"999": 1}}, 400, "999", "logit_bias", None),
    ("completions", {"prompt": "a", "logit_bias": {"5": 1}, "sequence_bias": [[[5], 1.0]]}, 400,
     "both given", "logit_bias", None),
    ("completions", {"prompt": "a", "n": 2, "best_of": 1}, 400, "best_of", "best_of", None),
    ("completions", {"prompt": "a", "model": "gpt-4"}, 404, "'fox' is served", "model",
     "model_not_found"),
    ("completions", {"prompt": ["a"] * 80}, 429, "too many requests", None, None),
    ("chat/completions", {"messages": []}, 400, "messages", "messages", None),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "'tool'",
     "messages[0].role", None),
    ("chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, 400,
     "not the user's", "messages", None),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
     "neither a text nor parts", "messages[0].content", None),
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, 400,
     "tools", "tools", "unsupported_parameter"),
    ("nothing", {}, 404, "Not Found", None, None),
  ],
)  # fmt: skip
def test_errors(server, path, body, status, message, param, code):
  got, text = curl(server, f"/v1/{path}", body)
  error = json.loads(text)["error"]
  assert (got, error["param"], error["code"]) == (status, param, code), error
  assert message in error["message"]


def test_a_body_that_is_too_large_and_a_key_that_is_wrong(server, tmp_path):
  big = tmp_path / "big.json"
  big.write_text(json.dumps({"prompt": "a" * 10_000_000}))
  status, text = curl(server, "/v1/completions", f"@{big}")
  assert status == 413 and "8388608 bytes" in text
  wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0)
  with pytest.raises(openai.AuthenticationError):
    wrong.models.list()


def test_unknown_fields_change_nothing(client):
  ask = lambda **more: client.completions.create(
    model="fox", prompt=PROMPT, max_tokens=5, temperature=0, **more
  )
  fields = {"metadata": {"a": 1}, "tools": [], "response_format": {"type": "text"}}
  assert ask(extra_body=fields, user="me").choices[0].text == ask().choices[0].text


# --- the tokenizer's own routes, and those for watching -------------------------------------------


def test_tokenizer_routes(server, lm):
  ids = lm.tokenizer(PROMPT).input_ids
  status, text = curl(server, "/tokenize", {"prompt": PROMPT, "add_special_tokens": False})
  assert status == 200 and json.loads(text)["tokens"] == ids
  assert json.loads(curl(server, "/detokenize", {"tokens": ids})[1])["prompt"] == PROMPT
  assert curl(server, "/detokenize", {"tokens": [-1]})[0] == 400
  done = json.loads(curl(server, "/tokenizer_info", "", "-X", "GET")[1])
  assert done["eos_token"] == lm.tokenizer.eos_token


def test_health_and_metrics_need_no_key(server):
  get = lambda path: (
    subprocess.run(
      ["curl", "-s", f"{server.url}{path}"], capture_output=True, text=True, check=True
    ).stdout
  )
  assert json.loads(get("/health"))["status"] == "ok"
  metrics = get("/metrics")
  assert 'gptneo_jax_requests_total{path="/v1/completions",status="200"}' in metrics
  assert "gptneo_jax_rows 0.0" in metrics
  new = lambda: float(re.search(r'tokens_total{kind="new"} (\S+)', get("/metrics"))[1])
  before = new()
  for stream in (True, False):
    body = {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True, "stream": stream}
    curl(server, "/v1/completions", body)
  assert new() == before + 6
