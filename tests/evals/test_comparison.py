"""Reports side by side."""

import json

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.evals import comparison, report
from tests.helpers.reports import REPORT, changed, rows


def test_side_by_side():
  other = changed(data__windows="windows of 2048 tokens, strided by 512", results__data__loss=2.25)
  del other["results"]["lambada"], other["tasks"]
  text = comparison.markdown([REPORT, other])
  table = rows(text)
  head = text.splitlines()[0].strip("| ").split("|")
  assert [cell.strip() for cell in head] == ["mine int8 (1)", "mine int8 (2)"]
  assert table["windows"] == [REPORT["data"]["windows"], other["data"]["windows"]]
  assert table["limit"] == ["400", "400"] and table["step"] == ["70", "70"]
  assert table["data loss"] == ["2.5000", "2.2500"]
  assert table["lambada acc, 5 shots"] == ["0.5723", "-"]
  assert table["GPT-Neo 1.3B, published"][4] == "57.2300" == table["mine int8 (1)"][4]
  assert "mine int8 (2)" not in table  # it has no column of that table
  order = [name for name in table if name.startswith("data ")]
  assert order[0] == "data bits_per_byte"
  assert "The windows are not the same" in text and "*" not in text


def test_side_by_side_with_another_tokenizer_and_other_documents():
  """Only figures that cannot be compared are marked."""
  other = changed(
    tokenizer="fedcba9876543210", tasks__num_fewshot__lambada=0, arguments__limit=10,
    data__text_sha256="00",
  )  # fmt: skip
  pile = {"pile_local": {"token_perplexity": 9.0, "bits_per_byte": 1.0}}
  first = changed(results=REPORT["results"] | pile)
  text = comparison.markdown([first, {**other, "results": other["results"] | pile}])
  table = rows(text)
  assert table["data perplexity"] == ["12.1820", "12.1820*"]
  assert table["data/Books\\|3 loss"] == ["3.2500", "3.2500*"]
  assert table["data bits_per_byte"] == ["1.2025", "1.2025"]
  assert table["pile_local token_perplexity"] == ["9.0000", "9.0000*"]
  assert table["pile_local bits_per_byte"] == ["1.0000", "1.0000"]
  assert table["lambada acc, 5 shots"] == ["0.5723", "-"]  # another number of examples, another row
  assert table["lambada acc, 0 shots"] == ["-", "0.5723"]
  for note in ("* Of another tokenizer", "The limits are not", "The documents are not"):
    assert note in text


def test_a_comparison_is_written(tmp_path):
  path = tmp_path / "both.json"
  other = changed(checkpoint__name="runs/other", tokenizer="fedcba9876543210")
  assert comparison.write([REPORT, other], ["a.json", "b.json"], str(path)) == []
  content = json.loads(path.read_text())
  assert [(c["file"], c["name"]) for c in content["compared"]] == [
    ("a.json", "mine int8"), ("b.json", "other int8"),
  ]  # fmt: skip
  assert {"task": "data", "metric": "loss", "shots": None, "values": [2.5, 2.5]} in content["rows"]
  assert (tmp_path / "both.md").read_text() == comparison.markdown([REPORT, other])
  assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
  with pytest.raises(UserError, match="is no report"):
    report.read(str(path))
