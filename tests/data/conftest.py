"""Fixtures of the tests of data."""

import pytest

from tests.helpers.data_rows import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
  """One token for each byte, and the end of text."""
  return byte_tokenizer()
