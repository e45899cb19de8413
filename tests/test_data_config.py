"""The data section of a config: what is refused, and how it is named."""

import pytest

from gptneo_jax.data.config import DataConfig


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"source": "jsnl"}, "data.source"),
    ({"source": "jsonl"}, "data.path is empty"),
    ({"path": "x"}, "takes no path"),
    ({"source": "mixture"}, "data.mixture is empty"),
    ({"mixture": [(1, "stdlib", "")]}, "not 'mixture'"),
    ({"source": "mixture", "mixture": [(0, "stdlib", "")]}, "weight"),
    ({"source": "mixture", "mixture": [(1, "stdlib")]}, "is not"),
    ({"source": "mixture", "mixture": [(1, "csv", "x")]}, "csv"),
    ({"source": "mixture", "path": "x", "mixture": [(1, "stdlib", "")]}, "data.path"),
    ({"validation_path": "x"}, "data.validation_path"),
    ({"on_bad_record": "ignore"}, "data.on_bad_record"),
    ({"num_streams": 0}, "data.num_streams"),
    ({"shuffle_window": 2.5}, "data.shuffle_window"),
    ({"prefetch": -1}, "data.prefetch"),
    ({"validation_fraction": 1.0}, "data.validation_fraction"),
    ({"validation_fraction": 0.6, "test_fraction": 0.5}, "nothing to train on"),
    ({"tokenizer": ""}, "data.tokenizer"),
  ],
)
def test_config_errors_name_the_key(options, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**options)


def test_config_takes_lists():
  config = DataConfig(source="mixture", mixture=[[2, "stdlib", ""], [1, "jsonl", "x"]])
  assert config.mixture == ((2, "stdlib", ""), (1, "jsonl", "x"))
