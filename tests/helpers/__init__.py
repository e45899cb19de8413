"""What several test files use, and programs that they start; none of it is a test."""

import pathlib

HELPERS = pathlib.Path(__file__).resolve().parent
