"""conlleval's rules, as its two tables have them (Tjong Kim Sang, CoNLL-2000), and its figures."""

ENDS = {
  "BB",
  "BO",
  "IB",
  "IO",
  "EE",
  "EI",
  "EO",
  "EB",
  "SB",
  "SI",
  "SE",
  "SO",
  "SS",
  "BS",
  "IS",
  "ES",
}
STARTS = {"BB", "IB", "EB", "SB", "OB", "OI", "OE", "EE", "EI", "SE", "SI",
          "BS", "IS", "ES", "SS", "OS"}  # fmt: skip


def chunks(tags) -> list[tuple[str, int, int]]:
  """(type, start, end) of each chunk, token by token."""
  found, open_at = [], None
  before, type_before = "O", ""
  for n, tag in enumerate([*tags, "O"]):
    prefix, _, type_ = tag.partition("-")
    changed = type_ != type_before
    if open_at is not None and (before + prefix in ENDS or (before != "O" and changed)):
      found.append((type_before, open_at, n))
      open_at = None
    if before + prefix in STARTS or (prefix != "O" and changed):
      open_at = n
    before, type_before = prefix, type_
  return found


def f1_of(said, true, type_=None) -> tuple[float, float, float]:
  """Precision, recall and F1, of one type or of all."""
  hits = claimed = there = 0
  for said_tags, true_tags in zip(said, true):
    one, other = (
      [c for c in chunks(tags) if type_ in (None, c[0])] for tags in (said_tags, true_tags)
    )
    claimed += len(one)
    there += len(other)
    hits += sum(chunk in other for chunk in one)
  precision = hits / claimed if claimed else 0.0
  recall = hits / there if there else 0.0
  both = precision + recall
  return precision, recall, 2 * precision * recall / both if both else 0.0
