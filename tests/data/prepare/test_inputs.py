"""Who reads which file."""

from gptneo_jax.data.prepare.inputs import Part


def test_each_file_is_read_by_few():
  """By one part where there are enough files; and every unit is of exactly one part."""
  for files in range(1, 8):
    for count in range(1, 20):
      shares = [[Part(n, count).share(file, files) for n in range(count)] for file in range(files)]
      for its in shares:
        readers = [share for share in its if share[1]]
        assert len(readers) in {1, max(1, count // files), -(-count // files)}
        owners = [sum(unit % step == first for first, step in readers) for unit in range(40)]
        assert owners == [1] * 40
