"""Text files of several documents, lines or paragraphs."""

import gzip

import pytest

from gptneo_jax.data.documents import BadRecords, DataError
from gptneo_jax.data.text_files import text_files
from tests.helpers.data_files import (
  COMPRESSIONS,
  assert_continues_from_every_cursor,
  read_shard,
  texts_of,
)
from tests.helpers.data_rows import (
  batches_of,
  byte_tokenizer,
  config_of,
  documents_in,
  take,
  tokens_of_stream,
)


@pytest.mark.parametrize("compression", ["plain", "xz"])
def test_text_file_of_several_documents(tmp_path, compression):
  path = tmp_path / "stories.txt"
  text = (
    "\ufeffOne.\n<|endoftext|>\nTwo <|end|>\n\n<|endoftext|>Three<|endoftext|>\r\n<|endoftext|>"
  )
  path.write_bytes(COMPRESSIONS[compression](text.encode()))
  assert texts_of(path, "text") == ["One.\n", "Two <|end|>\n\n", "Three"]
  source = text_files(str(path), "stories", BadRecords("stop"))
  assert_continues_from_every_cursor(source)
  assert [document.location for _, document in read_shard(source)] == [
    f"{path}:1",
    f"{path}: document 2, line 1",
    f"{path}: document 3, line 1",
  ]
  path.write_bytes(COMPRESSIONS[compression](b"good<|endoftext|>a\n\xff<|endoftext|>better"))
  with pytest.raises(DataError, match="document 2, line 2: invalid UTF-8"):
    texts_of(path, "text")
  assert texts_of(path, "text", on_bad_record="skip") == ["good", "better"]


@pytest.mark.parametrize("document", ["line", "paragraph"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_document_a_line_or_paragraph(document, newline, compressed, tmp_path):
  """Reading continues from every cursor; blank lines and paragraphs are no documents."""
  text = "\ufeffone\ntwo\n\n \nthree \u2028 three\n\n\nfour\nfive"
  data = text.replace("\n", newline).encode()
  path = tmp_path / "a.txt"
  path.write_bytes(gzip.compress(data) if compressed else data)
  source = text_files(str(path), "name", BadRecords("stop"), document)
  read = list(source.read(0, (0, 0), lambda number: True))
  expected = {
    "line": ["one", "two", "three \u2028 three", "four", "five"],
    "paragraph": [
      newline.join(("one", "two")),
      "three \u2028 three",
      newline.join(("four", "five")),
    ],
  }[document]
  assert [document.text for _, document in read] == expected
  for number, (cursor, _) in enumerate(read):
    assert list(source.read(0, cursor, lambda number: True)) == read[number + 1 :]
  assert (
    read[1][1].location
    == {"line": f"{path}:2", "paragraph": f"{path}: paragraph 2, line 1"}[document]
  )


def test_one_text_file_feeds_several_streams(tmp_path):
  (tmp_path / "a.txt").write_text("<|endoftext|>".join("abcdef"))
  iterator = batches_of(
    config_of(f"{tmp_path}/a.txt", source="text", num_streams=3), byte_tokenizer()
  )
  batches = take(iterator, 4)
  iterator.close()
  owned = [set(documents_in(tokens_of_stream(batches, s, 2), byte_tokenizer())) for s in range(3)]
  assert owned == [set("ad"), set("be"), set("cf")]
