"""Loads and saves tokenizers, and encodes documents."""

import copy
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from gptneo_jax.data.documents import DataError, Document
from gptneo_jax.data.files import GIT_LFS, file_system, refuse_pointer
from gptneo_jax.data.hub_revision import split_revision
from gptneo_jax.data.long_texts import PART_CHARACTERS, make_cutter
from gptneo_jax.data.remote_folder import FIRST_TRIES, fetch
from gptneo_jax.data.tokenizer_training import END_OF_TEXT, train_tokenizer
from gptneo_jax.errors import first_line

_SETTINGS = "tokenizer_config.json"
_FILES = (_SETTINGS, "special_tokens_map.json", "tokenizer.json")
_PLAIN_FILES = ("merges.txt", "vocab.txt", "spiece.model", "tokenizer.model")  # no JSON
# More threads than cores evict one another's caches; more than this wait for Python's lock.
_MAX_THREADS = 16
_SHORT_DOCUMENT = 1000  # characters
_CALL_CHARACTERS = 1 << 18  # of long texts in one call, which takes hundreds of bytes a token


def load_tokenizer(
  name: str,
  *,
  documents: Iterable[Document] | None = None,
  vocab_size: int | None = None,
) -> Any:
  """A fast Hugging Face tokenizer.

  Args:
    name: hub id (or ID@REVISION), folder, file in the format of tokenizer.json, or 'train'.
    documents: for 'train': the text to train on; the first 20 MB are used.
    vocab_size: for 'train': number of entries, including the end of text.

  Returns:
    transformers.PreTrainedTokenizerFast.

  Raises:
    DataError: no such folder, the hub cannot be reached, or it is not a fast tokenizer.
  """
  if name == "train":
    if documents is None or vocab_size is None:
      raise ValueError("load_tokenizer('train') needs documents and vocab_size")
    return train_tokenizer(documents, vocab_size)
  return _load(name)


def _load(name: str) -> Any:
  local = os.path.expanduser(name)
  holds = lambda *files: all(os.path.isfile(os.path.join(local, file)) for file in files)
  for file in _PLAIN_FILES:
    refuse_pointer(os.path.join(local, file))
  if os.path.isfile(local):
    return _from_file(local)
  if "://" in name or holds("tokenizer.json"):
    tokenizer = saved_tokenizer(local)  # whatever model type a config.json in the folder names
    if tokenizer is None:
      raise DataError(f"tokenizer '{name}': no tokenizer.json in it")
    return tokenizer
  if holds("vocab.json", "merges.txt") and not (holds("config.json") or holds(_SETTINGS)):
    tokenizer = _from_vocabulary(local)
  elif os.path.isdir(local):
    tokenizer = _from_pretrained(local, name, local_files_only=True)
  elif name.startswith(("/", ".", "~")) or split_revision(name)[0].count("/") > 1:
    raise DataError(f"tokenizer '{name}': no such folder or file")
  else:
    tokenizer = _from_hub(name)
  if tokenizer is None or getattr(tokenizer, "backend_tokenizer", None) is None:
    raise DataError(f"tokenizer '{name}': has no fast version (tokenizer.json)")
  if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
    # transformers chose the class by the model type, and found no file of that class' vocabulary.
    raise DataError(
      f"tokenizer '{name}': {type(tokenizer).__name__} reads none of its files: name the"
      " tokenizer_class in its tokenizer_config.json"
    )
  return tokenizer


def find_end_of_text(tokenizer) -> int | None:
  """Id of the token that ends a document, None if the tokenizer has none."""
  if tokenizer.eos_token_id is not None:  # it may well be 0
    return tokenizer.eos_token_id
  return tokenizer.get_vocab().get(END_OF_TEXT)


def end_of_text_id(tokenizer) -> int:
  """Id of the token that ends a document; DataError if the tokenizer has none."""
  found = find_end_of_text(tokenizer)
  if found is None:
    raise DataError(f"the tokenizer has neither an end-of-sequence token nor {END_OF_TEXT}")
  return found


def vocabulary_size(tokenizer) -> int:
  """One more than the largest id."""
  return max(tokenizer.get_vocab().values()) + 1


def text_vocabulary_size(tokenizer) -> int:
  """One more than the largest id in an encoded document, its end of text included.

  Added special tokens, such as [PAD], are not counted: in documents they are ordinary text.
  """
  added = tokenizer.added_tokens_decoder.items()
  ids = [
    *tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values(),
    *(i for i, token in added if not token.special), find_end_of_text(tokenizer) or 0,
  ]  # fmt: skip
  return max(ids) + 1


def check_vocabulary(tokenizer, vocab_size: int) -> None:
  """Raises DataError if an encoded text can hold ids for which the model has no embedding."""
  ids = text_vocabulary_size(tokenizer)
  if ids > vocab_size:
    raise DataError(
      f"the tokenizer has {ids} ids, but the model's vocabulary holds {vocab_size}:"
      f" raise model.vocab_size to {ids} or more"
    )


class DocumentEncoder:
  """Encodes documents to token ids; special tokens written in a text are ordinary text.

  Attributes:
    end_of_text: id of the end-of-text token; no text is encoded to it.
  """

  def __init__(self, tokenizer):
    # A copy, since the caller's tokenizer still reads special tokens in prompts.
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    self._backend = backend
    self._cut = make_cutter(backend)
    self._threads = ThreadPoolExecutor(_cores(), thread_name_prefix="tokenizer")
    self.end_of_text = end_of_text_id(tokenizer)
    spelled = tokenizer.convert_ids_to_tokens(self.end_of_text)
    if self.end_of_text in self.encode([spelled])[0]:
      raise DataError(
        f"the tokenizer's end of text '{spelled}' is not a special token, so any document could"
        " contain it"
      )

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, int32, without end of text; several texts at once use several cores.

    Long texts are encoded in parts where that changes no id, because the library takes some 500
    bytes a token. Raises DataError if the tokenizer has no ids for a text.
    """
    if max(map(len, texts), default=0) <= PART_CHARACTERS:
      return self._encode(texts)
    parts = [(number, part) for number, text in enumerate(texts) for part in self._cut(text)]
    ids: list[list[np.ndarray]] = [[] for _ in texts]
    for call in _calls(parts):
      for (number, _), part_ids in zip(call, self._encode([part for _, part in call])):
        ids[number].append(part_ids)
    return [np.concatenate(part_ids) for part_ids in ids]

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    try:
      encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as error:  # the library raises no narrower type
      raise DataError(f"the tokenizer cannot encode every text: {first_line(error)}") from error
    return [np.array(encoding.ids, np.int32) for encoding in encodings]

  def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """As `encode`, and of each id its characters in the text, N x 2: start and end (exclusive).

    A token has the white space before a word among its characters if it is in the token, and tokens
    that are parts of one character all have that one.
    """
    found = []
    for text in texts:
      ids, offsets, before = [], [], 0
      for part in self._cut(text):
        encoding = self._backend.encode(part, add_special_tokens=False)
        ids.append(np.array(encoding.ids, np.int32))
        offsets.append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + before)
        before += len(part)
      found.append((np.concatenate(ids), np.concatenate(offsets)))
    return found

  def encode_later(self, texts: Sequence[str]) -> Future[list[np.ndarray]]:
    """As `encode`, in one other thread.

    With enough calls at the same time this is faster than `encode`, where the library's threads
    allocate what ours frees: that costs the allocator more than the threads save. A text encoded by
    itself stays in one thread.
    """
    return self._threads.submit(self._encode_here, texts)

  def _encode_here(self, texts: Sequence[str]) -> list[np.ndarray]:
    # Each call waits for Python's lock once, which could be most of the time of a short text.
    if sum(map(len, texts)) < _SHORT_DOCUMENT * len(texts):
      return self.encode(texts)
    return [np.concatenate([self._encode([p])[0] for p in self._cut(text)]) for text in texts]

  def close(self) -> None:
    """Cancels the calls that have not begun, and waits for the others."""
    self._threads.shutdown(cancel_futures=True)

  def fingerprint(self) -> str:
    """Hash of the vocabulary and the end of text, whatever files the tokenizer comes from."""
    vocabulary = sorted(self._backend.get_vocab().items(), key=lambda entry: entry[1])
    content = json.dumps([vocabulary, self.end_of_text]).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _calls(parts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
  """The (number of the text, part) in lists of about _CALL_CHARACTERS."""
  call, size = [], 0
  for part in parts:
    call.append(part)
    size += len(part[1])
    if size >= _CALL_CHARACTERS:
      yield call
      call, size = [], 0
  if call:
    yield call


def _cores() -> int:
  """Cores that this process may use, at most _MAX_THREADS."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return min(cores or 1, _MAX_THREADS)


def _from_file(path: str) -> Any:
  """The tokenizer in a single file like tokenizer.json, such as 20B_tokenizer.json."""
  from transformers import PreTrainedTokenizerFast

  try:
    return PreTrainedTokenizerFast(tokenizer_file=path)
  except Exception as error:
    raise _load_error(path, [path], error) from error


def _from_vocabulary(folder: str) -> Any:
  """GPT-2's tokenizer, from its two files. Other tokenizers have files of the same names, but other
  special tokens."""
  from transformers import GPT2Tokenizer

  files = [os.path.join(folder, file) for file in ("vocab.json", "merges.txt")]
  try:
    with open(files[0], encoding="utf-8") as file:
      vocabulary = json.load(file)
    if END_OF_TEXT not in vocabulary:
      raise DataError(
        f"tokenizer '{folder}': vocab.json and merges.txt without {END_OF_TEXT} are not GPT-2's;"
        f" {_SETTINGS} or tokenizer.json would name the tokenizer"
      )
    return GPT2Tokenizer.from_pretrained(folder, local_files_only=True)
  except DataError:
    raise
  except Exception as error:
    raise _load_error(folder, files[:1], error) from error


def _from_pretrained(path: str, name: str, **options):
  from transformers import AutoTokenizer

  try:
    # Left open, it would ask at the terminal whether to run what a repository brings.
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
  except Exception as error:  # every back end raises errors of its own
    files = [os.path.join(path, file) for file in (*_FILES, "vocab.json")]
    raise _load_error(name, files, error) from error


def _load_error(name: str, files: Sequence[str], error: Exception) -> DataError:
  """Names the first of `files` that is not JSON; if all are, quotes the library's error."""
  for path in filter(os.path.isfile, files):
    shown = name if os.path.isfile(name) else f"{name}/{os.path.basename(path)}"
    with open(path, "rb") as file:
      content = file.read()
    if content.startswith(GIT_LFS):
      return DataError(f"{shown}: a Git LFS pointer, not the tokenizer itself: git lfs pull")
    try:
      json.loads(content)
    except ValueError as fault:
      return DataError(f"{shown}: {f'damaged ({fault})' if content else 'the file is empty'}")
  # Some messages have several lines, of which the first says little.
  return DataError(f"tokenizer '{name}': cannot be loaded: {' '.join(str(error).split())[:500]}")


def _from_hub(name: str):
  """From the local cache if possible, so that a restarted run finds the same tokenizer."""
  import huggingface_hub

  hub_id, revision = split_revision(name)
  try:
    return _from_pretrained(hub_id, name, local_files_only=True, revision=revision or "main")
  except DataError:
    pass
  try:
    # One request, instead of most of a minute of retries if there is no network.
    huggingface_hub.HfApi().model_info(hub_id, timeout=10, revision=revision)
  except Exception as error:
    raise DataError(
      f"tokenizer '{name}': no such folder, and not found on the hub: {first_line(error)}"
    ) from error
  return _from_pretrained(hub_id, name, revision=revision or "main")


def saved_tokenizer(folder: str) -> Any:
  """The tokenizer that save_tokenizer wrote to a folder (local, gs://, s3://), or None."""
  from transformers import PreTrainedTokenizerFast

  fs, root = file_system(folder)
  with tempfile.TemporaryDirectory() as copied:
    if not _copy_files(fs, root, copied):
      return None
    try:
      return _with_prefix_space(PreTrainedTokenizerFast.from_pretrained(copied), copied)
    except Exception as error:
      files = [os.path.join(copied, file) for file in _FILES]
      raise _load_error(folder, files, error) from error


def _with_prefix_space(tokenizer, folder: str) -> Any:
  """The tokenizer with add_prefix_space of tokenizer_config.json, whatever tokenizer.json says: so
  GPT2Tokenizer reads these files, and AutoTokenizer through it."""
  from tokenizers import pre_tokenizers

  path = os.path.join(folder, _SETTINGS)
  settings = (
    json.loads(pathlib.Path(path).read_text(encoding="utf-8")) if os.path.exists(path) else {}
  )
  before = tokenizer.backend_tokenizer.pre_tokenizer
  named = settings.get("tokenizer_class", "GPT2Tokenizer")
  if "add_prefix_space" in settings and named in ("GPT2Tokenizer", "GPT2TokenizerFast"):
    if isinstance(before, pre_tokenizers.ByteLevel):
      before.add_prefix_space = bool(settings["add_prefix_space"])
  return tokenizer


def save_tokenizer(tokenizer, folder: str) -> None:
  """Writes a tokenizer to a folder (local, gs://, s3://), replacing one that is there."""
  fs, root = file_system(folder)
  with tempfile.TemporaryDirectory() as written:
    tokenizer.save_pretrained(written)
    fs.makedirs(root, exist_ok=True)
    # tokenizer.json last: it marks the folder as complete, should the run be killed in between.
    for file in sorted(os.listdir(written), key=lambda file: file == "tokenizer.json"):
      fs.put_file(os.path.join(written, file), f"{root}/{file}.part")
      fs.mv(f"{root}/{file}.part", f"{root}/{file}")
    for file in _FILES:
      if not os.path.exists(os.path.join(written, file)) and fs.exists(f"{root}/{file}"):
        fs.rm_file(f"{root}/{file}")  # of the replaced tokenizer


def _copy_files(fs, root: str, folder: str) -> bool:
  """Returns False if there is no tokenizer.json. Raises DataError if a file cannot be read."""
  for file in reversed(_FILES):  # tokenizer.json first
    path = f"{root}/{file}"
    try:
      pathlib.Path(folder, file).write_bytes(fetch(fs, path, path, tries=FIRST_TRIES))
    except FileNotFoundError:
      if file == _FILES[-1]:
        return False
  return True
