"""Checkpoint folders: the only code that uses orbax."""
