"""Run by test_skipping.py in a process of 8 CPU devices; prints its findings as JSON.

Three steps on a mesh that splits the batch, the weights and the heads; a row of the second, which
one device holds, has a weight that is not a number.
"""

import json

import jax
import numpy as np

from gptneo_jax import sharding
from gptneo_jax.config import ModelConfig
from gptneo_jax.model import heads
from gptneo_jax.state import abstract_state, init_state
from gptneo_jax.steps import make_train_step, place_batch
from gptneo_jax.training import optimizer, run_config, skipping
from tests.helpers import last_token_task


def main() -> None:
  model = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, vocab_size=300, max_position_embeddings=16,
    window_size=4, head="sequence_classification", pad_token_id=0, vocab_multiple=4,
  )  # fmt: skip
  config = run_config.base(model)
  module, mesh = heads.build(model), sharding.make_mesh(data=2, fsdp=2, tensor=2)
  rule, _ = optimizer.make_optimizer(
    optimizer.OptimizerConfig("adamw", learning_rate=0.01),
    optimizer.ScheduleConfig(warmup_steps=0, decay_steps=10),
  )
  guard = skipping.guard(skipping.SkipConfig(nonfinite=True, spike_sigmas=6.0))
  with jax.set_mesh(mesh):
    shapes = abstract_state(module, rule, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    everywhere = jax.tree.map(lambda _: shardings.step, jax.eval_shape(guard.init))
    step = make_train_step(
      last_token_task.make_loss(config, module), rule, shardings.replace(history=everywhere), mesh,
      guard=guard,
    )  # fmt: skip
    state = init_state(module, rule, mesh, 0)
    state = state.replace(history=jax.jit(guard.init, out_shardings=everywhere)())
    states, skipped = [], []
    for number in (1, 2, 3):
      rows = last_token_task.draw(config, number)
      if number == 2:
        rows["weights"][5] = np.nan
      state, metrics = step(state, place_batch(rows, mesh, config.batch_size))
      states.append(jax.device_get((state.params, state.opt_state)))
      skipped.append(int(metrics["skipped"]))
  same = lambda one, other: jax.tree.all(
    jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), one, other)
  )
  found = {
    "skipped": skipped,
    "as_before": same(states[0], states[1]),
    "moved": not same(states[1], states[2]),
    "history": int(state.history["count"]),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main()
