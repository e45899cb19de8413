"""Precision, recall and F1 of entities as conlleval has them: type and both ends must be right."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from gptneo_jax.examples import iob


def of_tags(
  said: Sequence[Sequence[str]], true: Sequence[Sequence[str]], types: Sequence[str]
) -> dict[str, float]:
  """precision, recall and f1 of all entities, and f1/TYPE, … of each type; 0 without any."""
  counts = {type_: collections.Counter() for type_ in types}
  for said_tags, true_tags in zip(said, true, strict=True):
    found, there = set(iob.entities(said_tags)), set(iob.entities(true_tags))
    for name, entities in (("hits", found & there), ("said", found), ("true", there)):
      for entity in entities:
        counts[entity.type][name] += 1
  total = sum(counts.values(), collections.Counter())
  by_type = {
    f"{name}/{type_}": value
    for type_, each in counts.items()
    for name, value in _ratios(each).items()
  }
  return _ratios(total) | by_type


def _ratios(counts: collections.Counter) -> dict[str, float]:
  hits, said, true = counts["hits"], counts["said"], counts["true"]
  return {
    "precision": hits / said if said else 0.0,
    "recall": hits / true if true else 0.0,
    "f1": 2 * hits / (said + true) if said + true else 0.0,
  }
