"""Documents and cursors, the error raised for bad data, and the count of skipped records."""

import dataclasses
import functools
import logging
from collections.abc import Callable

from gptneo_jax.errors import UserError

logger = logging.getLogger(__name__)

# Why a record without text is skipped: as a document, it would be an end of text and nothing else.
EMPTY_TEXT = "empty text"

# A position in a shard: records before it, and the byte offset of the next one in a file that is
# not compressed (elsewhere 0: such a shard is read from its beginning and the records counted).
Cursor = tuple[int, int]
Wanted = Callable[[int], bool]  # says of a record's number in its shard whether to yield it


def every_record(number: int) -> bool:
  """The `Wanted` that yields all."""
  return True


@functools.cache
def warn_once(message: str) -> None:
  """Logs a warning once in a process, since the same data is read for several purposes."""
  logger.warning(message)


class DataError(UserError):
  """Bad data, or a data configuration that does not fit it; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Document:
  """One text.

  Attributes:
    text: str without lone surrogates, so it always encodes to UTF-8; never empty.
    subset: the Pile's or RedPajama's name of its subset, or the name of the source.
    location: 'file:line', for messages.
  """

  text: str
  subset: str
  location: str


class BadRecords:
  """Raises at the first bad record or file, or skips them and counts the distinct ones.

  Attributes:
    counts: what is wrong -> distinct records, or files, that were skipped.
  """

  def __init__(self, policy: str, *, quiet: bool = False):
    """policy: 'stop' or 'skip', as data.on_bad_record; quiet: log no warning of what is skipped."""
    self._skip, self._quiet = policy == "skip", quiet
    self._seen: set[str] = set()
    self.counts: dict[str, int] = {}

  def add(self, location: str, reason: str, detail: str = "") -> None:
    """Skips a bad record; raises DataError naming `location` if the policy is 'stop'."""
    if not self._skip:
      message = f"{location}: {reason}{f' ({detail})' if detail else ''}"
      raise DataError(f"{message}; data.on_bad_record='skip' skips bad records")
    self.skip(location, reason)

  def add_file(self, location: str, reason: str) -> None:
    """As `add`, for a file that cannot be read from `location` on."""
    if not self._skip:
      raise DataError(
        f"{location}: {reason}; data.on_bad_record='skip' skips what cannot be read of a file"
      )
    self.skip(location, f"unreadable file: {reason}")

  def skip(self, location: str, reason: str) -> None:
    """Counts a record that is skipped whatever the policy."""
    # After a restart, and in a second epoch, the same records are read again.
    if location in self._seen:
      return
    self._seen.add(location)
    count = self.counts[reason] = self.counts.get(reason, 0) + 1
    # A warning at the 1st, 10th, 100th … of a kind. Skipping an empty text loses nothing.
    if reason != EMPTY_TEXT and not self._quiet and str(count).strip("0") == "1":
      warn_once(f"skipped in the data so far: {self}; the last: {location}")

  def log_summary(self) -> None:
    if self._seen:
      warn_once(f"skipped in the data: {self}")

  def __str__(self) -> str:
    """'2 x invalid JSON, 1 x unreadable file: damaged zstd data'."""
    return ", ".join(f"{count} x {reason}" for reason, count in self.counts.items())
