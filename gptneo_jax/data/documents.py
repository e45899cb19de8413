"""A document, the error of the data room, and the ledger of what was left out."""

import dataclasses
import functools
import logging

from gptneo_jax.errors import UserError

logger = logging.getLogger(__name__)

EMPTY_TEXT = "empty text"  # no document: it would be an end of text without anything to learn


@functools.cache
def warn_once(message: str) -> None:
  """Logs a warning, once in a process: the same data is read for several purposes."""
  logger.warning(message)


class DataError(UserError):
  """Something is wrong with the data; the message is one line for the user."""


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
  """Stops at the first bad record or file, or counts the distinct ones that were left out.

  quiet: says nothing of those.
  """

  def __init__(self, policy: str, *, quiet: bool = False):
    self._skip, self._quiet = policy == "skip", quiet
    self._seen: set[str] = set()
    self.counts: dict[str, int] = {}  # what is wrong -> distinct records, or files, left out

  def add(self, location: str, reason: str, detail: str = "") -> None:
    """Raises DataError naming `location`, unless bad records are to be skipped."""
    if not self._skip:
      message = f"{location}: {reason}{f' ({detail})' if detail else ''}"
      raise DataError(f"{message}; data.on_bad_record='skip' passes over bad records")
    self.pass_over(location, reason)

  def add_file(self, location: str, reason: str) -> None:
    """As `add`, of a whole file, or of the rest of it from `location` on."""
    if not self._skip:
      raise DataError(
        f"{location}: {reason}; data.on_bad_record='skip' leaves out what cannot be read of a file"
      )
    self.pass_over(location, f"file lost: {reason}")

  def pass_over(self, location: str, reason: str) -> None:
    """Counts a record that is left out whatever the policy."""
    # A restored block or a second epoch meets the same records again.
    if location in self._seen:
      return
    self._seen.add(location)
    count = self.counts[reason] = self.counts.get(reason, 0) + 1
    # 1, 10, 100, ... of a kind: a line now and then, never a flood. Of empty texts nothing is lost.
    loses = reason != EMPTY_TEXT and not self._quiet
    if loses and str(count).strip("0") == "1":
      warn_once(f"passed over in the data so far: {self}; the last: {location}")

  def log_summary(self) -> None:
    if self._seen:
      warn_once(f"passed over in the data: {self}")

  def __str__(self) -> str:
    """'2 x invalid JSON, 1 x file lost: damaged zstd data'."""
    return ", ".join(f"{count} x {reason}" for reason, count in self.counts.items())
