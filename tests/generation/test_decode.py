"""Greedy decoding against a loop of whole forward passes; batches against single prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox

from gptneo_jax.config import ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.generation.decode import generate_ids
from gptneo_jax.model.decoder import Decoder

CONFIG = ModelConfig(
  vocab_size=61,
  max_position_embeddings=96,
  hidden_size=24,
  num_layers=2,
  num_heads=2,
  window_size=8,
)
NO_END = 61  # an id that never comes


@pytest.fixture(scope="module")
def decoder():
  model = Decoder(CONFIG)
  params = unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
  # Weights of this spread decide between tokens; the initial ones hardly do.
  return model, jax.tree.map(lambda p: p * 3, params)


def prompts_of(*lengths):
  chance = np.random.default_rng(0)
  return [chance.integers(0, CONFIG.vocab_size, n).tolist() for n in lengths]


def test_greedy_is_the_argmax_of_whole_forward_passes(decoder):
  model, params = decoder
  logits = jax.jit(lambda ids: model.apply({"params": params}, ids, method="logits"))
  (prompt,) = prompts_of(11)
  ids = list(prompt)
  for _ in range(20):
    row_1xT = np.zeros((1, 40), np.int32)
    row_1xT[0, : len(ids)] = ids
    ids.append(int(logits(row_1xT)[0, len(ids) - 1].argmax()))
  new = generate_ids(model, params, [prompt], max_new_tokens=20, end_id=NO_END)
  assert new == [ids[11:]]
  assert len(set(new[0])) > 3


def test_a_batch_gives_each_prompt_what_it_gives_alone(decoder):
  prompts = prompts_of(3, 30, 17)
  together = generate_ids(*decoder, prompts, max_new_tokens=12, end_id=NO_END)
  alone = [
    generate_ids(*decoder, [prompt], max_new_tokens=12, end_id=NO_END)[0] for prompt in prompts
  ]
  assert together == alone


def test_a_row_ends_at_the_end_id_and_others_go_on(decoder):
  prompts = prompts_of(5, 6)
  free = generate_ids(*decoder, prompts, max_new_tokens=10, end_id=NO_END)
  end = next(token for token in free[0][1:] if token not in free[1])
  stopped = generate_ids(*decoder, prompts, max_new_tokens=10, end_id=end)
  assert stopped == [free[0][: free[0].index(end)], free[1]]


def test_sampling_is_seeded(decoder):
  draw = lambda seed: generate_ids(  # noqa: E731
    *decoder, prompts_of(5), max_new_tokens=16, end_id=NO_END, temperature=1.5, seed=seed
  )
  assert draw(1) == draw(1) != draw(2)


def test_what_cannot_be_continued_is_refused(decoder):
  with pytest.raises(UserError, match="empty"):
    generate_ids(*decoder, [[]], max_new_tokens=1, end_id=0)
  with pytest.raises(UserError, match=r"make 100, 4 more than the model's 96 positions"):
    generate_ids(*decoder, prompts_of(90), max_new_tokens=10, end_id=0)
