"""The table between Hugging Face's tensors and our parameters is complete."""

import pytest

from gptneo_jax.interop import hf_config, name_map
from tests.helpers import hf_folders

FAMILIES = ("gpt_neo", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_parameter_of_the_model_once(family):
  config = hf_config.from_hf(hf_folders.config(family), "config.json")
  shapes = name_map.leaf_shapes(config)
  entries = name_map.entries(config)
  places = [(path, entry.index) for entry in entries for path in entry.paths]
  assert len(places) == len(set(places))
  covered = {path: [i for p, i in places if p == path] for path in shapes}
  for path, shape in shapes.items():
    expected = list(range(shape[0])) if path.startswith("blocks/") else [None]
    assert sorted(covered[path], key=str) == sorted(expected, key=str), path
  found = {e.name: name_map.hf_shape(e, shapes, config.vocab_size) for e in entries}
  assert found == hf_folders.shapes(family)
