"""A document, the error of the data room, and the ledger of bad records."""

import dataclasses
import logging

from gptneo_jax.errors import UserError

logger = logging.getLogger(__name__)


class DataError(UserError):
  """Something is wrong with the data; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Document:
  """One text.

  Attributes:
    text: str without lone surrogates, so it always encodes to UTF-8.
    subset: the Pile's name of its subset, or the name of the source.
    location: 'file:line', for messages.
  """

  text: str
  subset: str
  location: str


class BadRecords:
  """Stops at the first bad record, or counts the distinct ones that were passed over."""

  def __init__(self, policy: str):
    self._skip = policy == "skip"
    self._seen: set[str] = set()
    self.counts: dict[str, int] = {}  # what is wrong -> distinct records passed over

  def add(self, location: str, reason: str, detail: str = "") -> None:
    """Raises DataError naming `location`, unless bad records are to be skipped."""
    if not self._skip:
      message = f"{location}: {reason}{f' ({detail})' if detail else ''}"
      raise DataError(f"{message}; data.on_bad_record='skip' passes over bad records")
    self.pass_over(location, reason)

  def pass_over(self, location: str, reason: str) -> None:
    """Counts a record that is left out whatever the policy."""
    # A restored block or a second epoch meets the same records again.
    if location in self._seen:
      return
    self._seen.add(location)
    self.counts[reason] = self.counts.get(reason, 0) + 1
    total = len(self._seen)
    if total & (total - 1) == 0:  # 1, 2, 4, 8, ...: a summary now and then, never a flood
      logger.warning(
        "passed over %d bad record(s) so far %s; the last: %s: %s",
        total,
        self.counts,
        location,
        reason,
      )

  def log_summary(self) -> None:
    if self._seen:
      logger.warning("passed over %d bad record(s): %s", len(self._seen), self.counts)
