"""A tiny model, a server of it in a process of its own, and OpenAI's client."""

import openai
import pytest

import gptneo_jax
from gptneo_jax import data
from tests.helpers.served import KEY, POSITIONS, serving
from tests.helpers.text_models import TINY, make, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("served") / "fox")
  lm = make(TINY.replace(max_position_embeddings=POSITIONS), tokenizer=make_tokenizer())
  lm.save(path)
  data.save_tokenizer(lm.tokenizer, path)
  return path


@pytest.fixture(scope="module")
def lm(folder):
  return gptneo_jax.load(folder)


@pytest.fixture(scope="module")
def server(folder):
  limits = ["--slots", "4", "--queue", "60", "--prefix_cache_mib", "4"]
  with serving(folder, *limits, "--api_key", KEY) as served:
    yield served


@pytest.fixture(scope="module")
def client(server):
  return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
