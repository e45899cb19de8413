"""Checkpoint folders on disk: all that knows orbax."""
