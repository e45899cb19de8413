"""Files of questions: bad records are named by file and line."""

import json

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.evals import qa_file

GOOD = {"prompt": "p", "reference": "r", "prediction": "x"}


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", "not JSON"),
    ('["p"]', "not an object"),
    (json.dumps({**GOOD, "prompt": ""}), '"prompt" is missing'),
    (json.dumps({**GOOD, "reference": []}), '"reference" is missing'),
    (json.dumps({**GOOD, "reference": ["a", 1]}), '"reference" is missing, or neither'),
    (json.dumps({**GOOD, "category": 1}), '"category" is not a text'),
    (json.dumps({**GOOD, "prediction": ["x"]}), '"prediction" is not a text'),
    (json.dumps({**GOOD, "stop": [""]}), '"stop" is neither'),
    (json.dumps({**GOOD, "stop": None}), '"stop" is neither'),
    (json.dumps({**GOOD, "reference": "\ud800"}), "not valid text"),
  ],
)
def test_bad_records(tmp_path, line, message):
  path = tmp_path / "q.jsonl"
  path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
  with pytest.raises(UserError, match=rf"q\.jsonl:3: .*{message}"):
    list(qa_file.read(str(path)))


def test_question(tmp_path):
  """All fields, a byte order mark, blank lines and fields that are ignored."""
  record = {**GOOD, "reference": ["r", "s"], "category": "c", "stop": "\n", "other": 1}
  path = tmp_path / "q.jsonl"
  path.write_text("\ufeff" + json.dumps(record) + "\n\n" + json.dumps({**GOOD, "stop": ["a", "b"]}))
  first, second = qa_file.read(str(path))
  assert first == qa_file.Question(f"{path}:1", "p", ("r", "s"), "c", "x", ("\n",))
  assert second == qa_file.Question(f"{path}:3", "p", ("r",), None, "x", ("a", "b"))
