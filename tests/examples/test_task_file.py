"""task.json."""

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.examples import task_file
from gptneo_jax.examples.task_file import TaskSpec


def test_there_and_back(tmp_path):
  spec = TaskSpec(
    "sentence_pairs", 64, labels=("não", "sim"), label_weights=(1.0, 2.0), tokens={"start": 9},
    settings={"stride": 3},
  )  # fmt: skip
  task_file.save(tmp_path, spec)
  assert task_file.load(tmp_path) == spec
  assert "não" in (tmp_path / "task.json").read_text()


def test_none(tmp_path):
  assert task_file.load(tmp_path) is None


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "task.json cannot be read"),
    ("[]", "task.json names no task"),
    ('{"task": "x", "max_tokens": 1, "labls": []}', "unknown field 'labls'; did you mean labels"),
  ],
)
def test_damage(tmp_path, text, message):
  (tmp_path / "task.json").write_text(text)
  with pytest.raises(UserError, match=message):
    task_file.load(tmp_path)
