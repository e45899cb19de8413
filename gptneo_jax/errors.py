"""The error of a user's mistake: programs print its message as one line, without a traceback."""


class UserError(Exception):
  """Bad input: the message names the thing, the file and line if there is one, and what to do."""
