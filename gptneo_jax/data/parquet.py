"""Rows of a parquet file."""

from collections.abc import Iterator, Sequence

from gptneo_jax.data.documents import Wanted
from gptneo_jax.data.file_formats import UnreadableFileError
from gptneo_jax.errors import first_line

_ROWS = 256  # in memory at a time


def read_rows(
  file, fields: Sequence[str], start: int, wanted: Wanted
) -> Iterator[tuple[int, dict[str, object]]]:
  """(number, row) from row `start` on, with the columns that hold `fields` ('a' or 'a.b').

  The rows have all columns if no field is given, or no column holds fields[0]. Raises
  UnreadableFileError if the file is damaged.
  """
  from pyarrow import ArrowException, array, int64, parquet

  try:
    table = parquet.ParquetFile(file)
    names = table.schema_arrow.names
    columns = [name for name in names if any(_within(field, name) for field in fields)]
    if not any(_within(field, name) for field in fields[:1] for name in columns):
      columns = names  # so that the message about the missing field can name the others
    first = 0
    for group in range(table.metadata.num_row_groups):
      size = table.metadata.row_group(group).num_rows
      if first + size > start:
        number = first
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
          taken = [n for n in range(batch.num_rows) if number + n >= start and wanted(number + n)]
          for n, row in zip(taken, batch.take(array(taken, int64())).to_pylist()):
            yield number + n, row
          number += batch.num_rows
      first += size
  except ArrowException as error:
    raise UnreadableFileError(f"damaged parquet data ({first_line(error)})") from error


def _within(field: str, column: str) -> bool:
  return field == column or field.startswith(f"{column}.")
