"""LLM judges: an endpoint and its failures; a local model, against its own logits."""

import hashlib
import http.server
import json
import math
import re
import socket
import threading
import time

import numpy as np
import pytest

import gptneo_jax
from gptneo_jax import data
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError
from gptneo_jax.evals import llm_judge, provenance, qa_eval
from tests.helpers.small_models import random_lm

GOOD = "It says the same.\nScore: 7"


def says(content):
  return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]})


class Endpoint:
  """A local server that gives the replies of a list, and then repeats the last one.

  It has no list of models at first. A reply is (status, headers, body), None to hang up, seconds to
  be silent for, or a function of the request that gives one of these.
  """

  def __init__(self):
    self.replies, self.requests = [says(GOOD)], []
    self.models, self.asked_for_models = (404, {}, "no such page"), 0
    lock = threading.Lock()
    endpoint = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with lock:
          reply = endpoint.replies.pop(0) if len(endpoint.replies) > 1 else endpoint.replies[0]
          request = (self.path, self.headers, json.loads(body))
          endpoint.requests.append(request)
        if callable(reply):
          reply = reply(request)
        if isinstance(reply, float):
          time.sleep(reply)
        if not isinstance(reply, tuple):
          self.close_connection = True
          return
        self.send(*reply)

      def do_GET(self):
        assert self.path == "/v1/models"
        endpoint.asked_for_models += 1
        self.send(*endpoint.models)

      def send(self, status, headers, text):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
          self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

      def log_message(self, *_):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
    self._thread.start()

  def close(self):
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()


@pytest.fixture
def endpoint(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  endpoint = Endpoint()
  yield endpoint
  endpoint.close()


@pytest.fixture
def waits(monkeypatch):
  waits = []
  monkeypatch.setattr(llm_judge.time, "sleep", waits.append)
  return waits


def grade(endpoint):
  return llm_judge.make_judge(endpoint.url, model="m").grade("p", "r", "a")


# --- an endpoint ----------------------------------------------------------------------------------


def test_request_and_reply(endpoint, waits, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "secret")
  judging = llm_judge.make_judge(endpoint.url + "/#some/model")
  material = ("What is {x}?", "a {reference} é", "an </answer> {answer}")
  assert judging.grade(*material) == llm_judge.Judgement(7, "It says the same.")
  ((path, headers, body),) = endpoint.requests
  assert path == "/v1/chat/completions"
  assert headers["Authorization"] == "Bearer secret"
  assert body["model"] == "some/model" and body["temperature"] == 0
  system, user = body["messages"]
  assert (system["role"], user["role"]) == ("system", "user")
  for text in material:
    assert text in user["content"]
  assert waits == []
  # The description has the prompt that was sent, as a template, and its hash.
  told = judging.description
  assert (told["kind"], told["url"], told["model"]) == ("endpoint", endpoint.url, "some/model")
  assert told["prompt"]["system"] == system["content"]
  filled = told["prompt"]["user"].format(**dict(zip(("prompt", "reference", "answer"), material)))
  assert filled == user["content"]
  prompt = json.dumps(told["prompt"], ensure_ascii=False, sort_keys=True)
  assert told["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
  assert "secret" not in json.dumps(told)


def test_no_key_no_header(endpoint):
  grade(endpoint)
  assert endpoint.requests[0][1]["Authorization"] is None


@pytest.mark.parametrize(
  "said, score",
  [
    ("Score: 1", 1),
    ("Right.\n\nScore: 10\n", 10),
    ("Score: 3\nNo:\nScore: 4", 4),  # the last line counts
    ("Score: 0", None),
    ("Score: 11", None),
    ("Score: 7.5", None),
    ("Score: 7/10", None),
    ("Score: \u0667", None),  # Arabic digits
    ("score: 7", None),
    ("**Score: 7**", None),
    ("Score: 7\nIt was close.", None),
    ("I would say Score: 7", None),
    ("", None),
  ],
)
def test_parsing_is_strict(endpoint, said, score):
  endpoint.replies = [says(said)]
  judgement = grade(endpoint)
  assert judgement.score == score
  if score is None:
    assert judgement.explanation == said  # the reply is kept


def test_reply_without_text(endpoint):
  endpoint.replies = [says(None)]
  assert grade(endpoint).score is None


def test_busy_then_fine(endpoint, waits):
  endpoint.replies = [(429, {"Retry-After": "7"}, ""), (503, {}, "{}"), None, says(GOOD)]
  assert grade(endpoint).score == 7
  assert waits == [7, 2, 4]
  assert len(endpoint.requests) == 4


def test_retry_after_has_a_limit(endpoint, waits):
  endpoint.replies = [(429, {"Retry-After": "86400"}, ""), (429, {"Retry-After": "soon"}, ""),
                      says(GOOD)]  # fmt: skip
  assert grade(endpoint).score == 7
  assert waits == [60, 2]


def test_failing_server(endpoint, waits):
  endpoint.replies = [(500, {}, "")]
  with pytest.raises(UserError, match=rf"{endpoint.url}/chat/completions failed 6 times.*500"):
    grade(endpoint)
  assert waits == [1, 2, 4, 8, 16]


def test_silent_server(endpoint, monkeypatch):
  monkeypatch.setattr(llm_judge, "_ATTEMPTS", 1)
  endpoint.replies = [0.3]
  with pytest.raises(UserError, match=r"no answer within 0\.05 s"):
    llm_judge.make_judge(endpoint.url, model="m", timeout=0.05).grade("p", "r", "a")


@pytest.mark.parametrize(
  "reply, message",
  [
    ((401, {}, '{"error": "no key"}'), "401.*no key.*OPENAI_API_KEY"),
    ((404, {}, '{"error": {"message": "no\\n model m"}}'), "404.*no.*model m"),
    ((200, {}, "<html>"), "does not answer as an OpenAI-compatible endpoint"),
    ((200, {}, '{"choices": []}'), "does not answer as an OpenAI-compatible endpoint"),
    ((200, {}, "[]"), "does not answer as an OpenAI-compatible endpoint"),
  ],
)
def test_refusals_are_one_line(endpoint, waits, reply, message):
  endpoint.replies = [reply]
  with pytest.raises(UserError, match=message) as error:
    grade(endpoint)
  assert "\n" not in str(error.value) and endpoint.url in str(error.value)
  assert len(endpoint.requests) == 1 and waits == []  # no retry


def test_unreachable(waits):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))  # and does not listen
    url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=rf"{url}/models cannot be reached: .*refused") as error:
      llm_judge.make_judge(url, model="m")
  assert "\n" not in str(error.value) and waits == []


@pytest.mark.parametrize("spec", ["http://", "http:///v1", "http://host:port/v1", "http://[/v1"])
def test_no_address(spec):
  with pytest.raises(UserError, match=r"no host|no address"):
    llm_judge.make_judge(spec)


def test_model_of_an_endpoint(endpoint):
  with pytest.raises(UserError, match=r"/models refuses: 404"):
    llm_judge.make_judge(endpoint.url)
  assert llm_judge.make_judge(endpoint.url + "#a", model="b").description["model"] == "b"
  endpoint.models = (200, {}, '{"data": [{"id": "only"}]}')
  judging = llm_judge.make_judge(endpoint.url)
  judging.grade("p", "r", "a")
  assert endpoint.requests[0][2]["model"] == judging.description["model"] == "only"
  endpoint.models = (200, {}, '{"data": [{"id": "b"}, {"id": "a"}]}')
  with pytest.raises(UserError, match=rf"2 models \(a, b\); name one: {endpoint.url}#MODEL"):
    llm_judge.make_judge(endpoint.url)
  endpoint.models = (200, {}, "{}")
  with pytest.raises(UserError, match="does not answer"):
    llm_judge.make_judge(endpoint.url)


def test_problems_are_known_before_there_are_answers(endpoint, waits):
  endpoint.models = (401, {}, "no key")
  with pytest.raises(UserError, match=r"401.*OPENAI_API_KEY"):
    llm_judge.make_judge(endpoint.url, model="m")
  endpoint.models = (503, {}, "")
  with pytest.raises(UserError, match="failed 6 times"):
    llm_judge.make_judge(endpoint.url, model="m")
  assert endpoint.asked_for_models == 7


def test_answers_judged_by_an_endpoint(endpoint, tmp_path):
  """Concurrent requests that finish out of order: each answer gets its own judgement."""
  path, output = tmp_path / "q.jsonl", str(tmp_path / "report.json")
  records = [
    {"prompt": f"question {n}", "reference": "r", "prediction": f"answer {n}"} for n in range(1, 11)
  ]
  path.write_text("".join(json.dumps(record) + "\n" for record in records))

  def reply(request):
    user = request[2]["messages"][1]["content"]
    number = int(user.partition("question ")[2].partition("\n")[0])
    time.sleep(0.02 * (number % 4))
    return says(f"of {number}\nScore: {number}" if number != 5 else "I cannot say")

  endpoint.replies = [reply]
  spec = endpoint.url + "#m"
  report = qa_eval.evaluate(None, str(path), judge=spec, output=output)
  scores = [sample["judge_score"] for sample in report["samples"]]
  assert scores == [1, 2, 3, 4, None, 6, 7, 8, 9, 10]
  assert report["samples"][7]["judge_explanation"] == "of 8"
  assert report["metrics"]["judge_score"] == pytest.approx(50 / 9)
  assert report["metrics"]["judge_unparsed"] == 1
  assert report["judge"]["model"] == "m"
  assert qa_eval.evaluate(None, str(path), judge=spec, output=output) == report
  assert len(endpoint.requests) == 10  # no judgement is requested twice
  qa_eval.evaluate(None, str(path), judge=endpoint.url + "#other", output=output)
  assert len(endpoint.requests) == 20  # another judge does not reuse them


# --- a local model --------------------------------------------------------------------------------


def save(folder, numbers):
  """A tiny random model whose tokenizer has each number as a token, or digits only."""
  config = gptneo_jax.ModelConfig(
    vocab_size=600, max_position_embeddings=384, hidden_size=16, num_layers=2, num_heads=2,
    window_size=16,
  )  # fmt: skip
  # Learnt from the prompt, so that its tokens are few.
  text = re.sub("[0-9]", "", llm_judge._FEW_SHOT_PROMPT) + " 1 2 3 4 5 6 7 8 9 10" * 9 * numbers
  documents = [Document(text, "", "here")]
  tokenizer = data.load_tokenizer("train", documents=documents, vocab_size=600)
  lm = random_lm(config, tokenizer, seed=1)
  lm.save(str(folder))
  return lm


@pytest.mark.parametrize("numbers, answer", [(True, "dog"), (False, "the lazy\n\n  dog {x}")])
def test_local_judge(numbers, answer, tmp_path):
  """The score is the number with the highest log-probability, also if it has several tokens."""
  lm = save(tmp_path / "model", numbers)
  own = [lm.tokenizer(f" {n}").input_ids for n in llm_judge.SCORES]
  assert {len(ids) for ids in own} == ({1} if numbers else {2, 3})
  judging = llm_judge.make_judge(str(tmp_path / "model"))
  judgement = judging.grade("jumps over what?", "the lazy dog", answer)
  one_line = " ".join(answer.split())
  prompt = judging.description["prompt"].format(
    prompt="jumps over what?", reference="the lazy dog", answer=one_line
  )
  assert prompt.endswith(f"Answer: {one_line}\nScore:")
  ids = lm.tokenizer(prompt).input_ids
  rows = [(ids + number + [0, 0])[: len(ids) + 3] for number in own]
  logits_NxTxV = np.asarray(lm.logits(rows), np.float64)[:, len(ids) - 1 :]
  logits_NxTxV -= np.log(np.exp(logits_NxTxV).sum(-1, keepdims=True))
  logp = [
    sum(row[token] for row, token in zip(rows_TxV, number))
    for rows_TxV, number in zip(logits_NxTxV, own)
  ]
  if not numbers:  # a 1 followed by a 0 is a ten
    logp[0] = math.log(math.exp(logp[0]) - math.exp(logp[9]))
  assert judgement.score == 1 + int(np.argmax(logp))
  title, _, told = judgement.explanation.partition("1: ")
  assert title == "log-probabilities "
  told = [float(part.rpartition(" ")[2]) for part in told.split(",")]
  np.testing.assert_allclose(told, logp, atol=1e-3)  # they are given to three decimals


def test_local_judge_with_too_little_room(tmp_path):
  save(tmp_path / "model", numbers=True)
  judgement = llm_judge.make_judge(str(tmp_path / "model")).grade("p", "r", "word " * 500)
  assert judgement.score is None
  assert "the judge has 384 positions" in judgement.explanation


def test_local_judge_whose_logits_are_not_finite(tmp_path):
  lm = save(tmp_path / "model", numbers=True)
  lm.params["ln_f"]["scale"] = lm.params["ln_f"]["scale"].at[0].set(math.nan)
  lm.save(str(tmp_path / "broken"))
  with pytest.raises(UserError, match="not finite"):
    llm_judge.make_judge(str(tmp_path / "broken")).grade("p", "r", "a")


def test_description_has_the_weights_hash(tmp_path):
  lm = save(tmp_path / "model", numbers=True)
  judging = llm_judge.make_judge(str(tmp_path / "model"))
  assert judging.description["weights"] == provenance.of_model(lm)


def test_no_such_judge(tmp_path):
  headed = gptneo_jax.ModelConfig(
    vocab_size=280, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=2,
    head="question_answering",
  )  # fmt: skip
  gptneo_jax.init(headed).save(str(tmp_path / "headed"))
  with pytest.raises(UserError, match="head is 'question_answering'"):
    llm_judge.make_judge(str(tmp_path / "headed"))
  with pytest.raises(UserError, match=str(tmp_path)):
    llm_judge.make_judge(str(tmp_path / "absent"))
  with pytest.raises(UserError, match="no http"):
    llm_judge.make_judge(str(tmp_path), model="m")
