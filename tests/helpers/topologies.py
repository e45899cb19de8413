"""Marks of tests that compile for a TPU."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no libtpu: TPU's compiler is not installed"
)
