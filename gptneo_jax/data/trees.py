"""Text and code trees, and the Python standard library: one document a file."""

import os
import sysconfig
from collections.abc import Callable, Iterator

from gptneo_jax.data.documents import BadRecords, DataError, Document
from gptneo_jax.data.files import match_files

# Held out of the standard library as whole packages: files of one package resemble each other.
STDLIB_VALIDATION = ("json", "logging", "urllib")  # about 390 kB in Python 3.11
STDLIB_TEST = ("email", "tomllib")  # about 400 kB
_STDLIB_LEFT_OUT = frozenset(
  # Tests; what other people installed; tables and generated text that teach little.
  "test tests idle_test site-packages dist-packages __pycache__ encodings pydoc_data".split()
)
_BINARY_PROBE = 8000  # bytes in which a zero byte means a binary file, as in git


class TextFiles:
  """A tree or glob of text files.

  Attributes:
    shards: the files, sorted.
  """

  def __init__(self, fs, files: list[str], name: str, bad_records: BadRecords):
    self._fs, self.shards, self._name, self._bad_records = fs, files, name, bad_records

  def read(
    self, shard: int, start: tuple[int, int], mine: Callable[[int], bool]
  ) -> Iterator[tuple[tuple[int, int], Document]]:
    """The one document of a file, as JsonLines.read. Empty and binary files hold none."""
    if start[0] > 0 or not mine(0):
      return
    path = self.shards[shard]
    try:
      data = self._fs.cat_file(path)
    except OSError as error:
      raise DataError(f"{path}: cannot be read: {error}") from error
    if b"\0" in data[:_BINARY_PROBE]:
      self._bad_records.pass_over(f"{path}:1", "binary file")
      return
    try:
      text = data.decode()
    except UnicodeDecodeError as error:
      line = data.count(b"\n", 0, error.start) + 1
      self._bad_records.add(f"{path}:{line}", "invalid UTF-8", f"byte {error.start} of the file")
      return
    if text:
      yield (1, 0), Document(text, self._name, f"{path}:1")


def text_files(path: str, name: str, bad_records: BadRecords) -> TextFiles:
  """The files of a folder or glob; DataError when there is none."""
  fs, files = match_files(path, folders=True)
  return TextFiles(fs, files, name, bad_records)


def stdlib_files(split: str, bad_records: BadRecords) -> TextFiles:
  """The Python standard library's own source, of one split ('train', 'validation', 'test')."""
  import fsspec

  root = sysconfig.get_paths()["stdlib"]
  files = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _STDLIB_LEFT_OUT]
    files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
  files = sorted(file for file in files if _stdlib_split(os.path.relpath(file, root)) == split)
  if not files:
    raise DataError(f"{root}: this Python has no source files of its standard library")
  return TextFiles(fsspec.filesystem("file"), files, "stdlib", bad_records)


def _stdlib_split(below: str) -> str:
  package = below.split(os.sep)[0]
  if package in STDLIB_VALIDATION:
    return "validation"
  return "test" if package in STDLIB_TEST else "train"
