"""The words that contamination compares, by a plain loop."""

import unicodedata


def words(text):
  """The normalisation, character by character."""
  folded = ""
  for character in text:
    if character.isspace():
      folded += " "
    elif unicodedata.category(character)[0] in "LNM":
      folded += character.lower()[0]
  return folded.split()
