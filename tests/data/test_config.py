"""The data section of a config: what is refused, and how it is named."""

import importlib

import pytest

from gptneo_jax.data.config import DataConfig
from gptneo_jax.data.documents import DataError


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
    ({"document": "sentence"}, "data.document is 'sentence'"),
    ({"source": "jsonl", "path": "x", "document": "line"}, "for the source 'text' or 'auto'"),
    ({"num_streams": -1}, "data.num_streams"),
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


@pytest.mark.parametrize(
  ("batch_size", "number"),
  [(1, 1), (4, 4), (64, 64), (512, 64), (96, 48), (67, 1), (130, 26)],
)
def test_streams_for_a_batch(batch_size, number):
  config = DataConfig().for_batch(batch_size)
  assert config.num_streams == number and config.for_batch(batch_size) == config
  assert DataConfig(num_streams=1).for_batch(batch_size).num_streams == 1


@pytest.mark.parametrize("batch_size", [4, 12])
def test_streams_that_do_not_divide_the_batch(batch_size):
  with pytest.raises(DataError, match=rf"data.num_streams 8 .* {batch_size}; data.num_streams=0 "):
    DataConfig(num_streams=8).for_batch(batch_size)


@pytest.mark.parametrize("recipe", ["neo_125m", "neo_350m", "neo_1p3b", "neo_2p7b", "gpt2_small"])
def test_the_recipes_have_streams_for_many_hosts(recipe):
  config = importlib.import_module(f"gptneo_jax.configs.{recipe}").get_config()
  assert DataConfig(**config.data).for_batch(config.batch_size).num_streams == 64
