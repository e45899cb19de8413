"""Rows of a parquet file."""

from collections.abc import Callable, Iterator, Sequence

from gptneo_jax.data.contents import LostFileError

_ROWS = 256  # held at a time


def read_rows(
  file, fields: Sequence[str], start: int, mine: Callable[[int], bool]
) -> Iterator[tuple[int, dict[str, object]]]:
  """(number, row) from row `start` on, of the columns that `fields` ('a' or 'a.b') need.

  Raises LostFileError if the file is damaged; all columns are read where none holds fields[0].
  """
  from pyarrow import ArrowException, array, int64, parquet

  try:
    table = parquet.ParquetFile(file)
    names = table.schema_arrow.names
    columns = [name for name in names if any(_within(field, name) for field in fields)]
    if not any(_within(fields[0], name) for name in columns):
      columns = names  # so that the message about what is missing can name what is there
    first = 0
    for group in range(table.metadata.num_row_groups):
      size = table.metadata.row_group(group).num_rows
      if first + size > start:
        number = first
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
          wanted = [n for n in range(batch.num_rows) if number + n >= start and mine(number + n)]
          for n, row in zip(wanted, batch.take(array(wanted, int64())).to_pylist()):
            yield number + n, row
          number += batch.num_rows
      first += size
  except ArrowException as error:
    raise LostFileError(f"damaged parquet data ({str(error).splitlines()[0]})") from error


def _within(field: str, column: str) -> bool:
  return field == column or field.startswith(f"{column}.")
