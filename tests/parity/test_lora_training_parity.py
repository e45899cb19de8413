"""LoRA trains as PEFT does: as many parameters, the same losses for 50 steps, the same files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from gptneo_jax import model_io, steps  # noqa: E402
from gptneo_jax.checkpoints.adapters import adapter_of  # noqa: E402
from gptneo_jax.interop import peft_files  # noqa: E402
from gptneo_jax.model import heads, lora, methods  # noqa: E402
from gptneo_jax.model.lora import LoraConfig  # noqa: E402
from gptneo_jax.model.methods import Method  # noqa: E402
from gptneo_jax.state import init_state  # noqa: E402
from gptneo_jax.training.optimizer import (  # noqa: E402
  OptimizerConfig,
  ScheduleConfig,
  make_optimizer,
)
from gptneo_jax.training.tasks.lm import next_token_loss  # noqa: E402
from tests.helpers import hf_models  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

STEPS, RATE, DECAY = 50, 5e-3, 0.01
IDS = np.random.default_rng(0).integers(0, 61, (STEPS, 4, 33))  # past the window of 6
TARGETS = {
  "gpt_neo": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
  "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def peft_run(adapted):
  """The losses of PEFT's model, which is left as it is after the last step."""
  learned = [p for p in adapted.parameters() if p.requires_grad]
  rule = torch.optim.AdamW(learned, RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY)
  losses = []
  for ids in IDS:
    loss = adapted(torch.tensor(ids), labels=torch.tensor(ids)).loss
    rule.zero_grad()
    loss.backward()
    rule.step()
    losses.append(loss.item())
  return losses


def as_learned(state, adapter):
  """An adapter's factors in the layout that learns: GPT-2's q, k and v share theirs."""

  def take(keys, old):
    *parents, name = (key.key for key in keys)
    node = lora.at(adapter, "/".join(parents))
    return jnp.asarray((node if name in node else node["q"])[name]).reshape(old.shape)

  return jax.tree_util.tree_map_with_path(take, state.params)


@pytest.mark.parametrize("family", TARGETS)
def test_fifty_steps(family, tmp_path):
  model = getattr(hf_models, family)(layers=2)
  config = hf_models.config_of(model)
  params = jax.tree.map(jnp.asarray, hf_models.to_params(hf_models.tensors(model), config))
  torch.manual_seed(0)
  adapted = peft.get_peft_model(
    model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[family])
  )
  adapted.save_pretrained(str(tmp_path / "start"))

  method, mesh = Method(LoraConfig(rank=4, alpha=8.0)), model_io.first_device()
  module = heads.build(config)
  optimizer, _ = make_optimizer(
    OptimizerConfig("adamw", RATE, weight_decay=DECAY, clip_norm=0.0),
    ScheduleConfig(name="constant", warmup_steps=0, decay_steps=1),
  )
  base = jax.tree.map(np.asarray, params)
  state = init_state(module, optimizer, mesh, 0, method, params)
  ours, theirs = (
    sum(x.size for x in jax.tree.leaves(state.params)),
    (adapted.get_nb_trainable_parameters()[0]),
  )
  assert ours == theirs
  state = state.replace(
    params=as_learned(state, peft_files.read_adapter(tmp_path / "start", config))
  )
  shardings = jax.tree.map(lambda x: x.sharding, state)
  step = steps.make_train_step(next_token_loss(module, 0.0), optimizer, shardings, mesh)
  losses = []
  for ids in IDS:
    batch = {"inputs": ids[:, :-1].astype(np.int32), "targets": ids[:, 1:].astype(np.int32)}
    state, metrics = step(state, steps.place_batch(batch, mesh, 4))
    losses.append(float(metrics["loss"]))
  expected = peft_run(adapted.train())
  errors = np.abs(np.array(losses) / expected - 1)
  print(f"{family}: {ours} trainable, loss {losses[0]:.4f} to {losses[-1]:.4f}, {errors.max():.1e}")
  assert errors.max() <= 1e-3

  # What is frozen is as it was; the files that are written are the model that was trained.
  plain = {k: v for k, v in methods.paths(state.frozen).items() if "lora_scale" not in k}
  for path, leaf in plain.items():
    np.testing.assert_array_equal(leaf, methods.paths(base)[path])
  learned = jax.tree.map(np.asarray, state.params)
  peft_files.write_adapter(tmp_path / "ours", config, adapter_of(learned, method.lora))
  fresh = getattr(hf_models, family)(layers=2)
  opened = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "ours")).eval()
  with torch.no_grad():
    logits = opened(torch.tensor(IDS[0])).logits.numpy()
    trained = adapted.eval()(torch.tensor(IDS[0])).logits.numpy()
  run = jax.jit(lambda params: module.apply({"params": params}, IDS[0], method="logits"))
  applied = np.asarray(run(state.model_params))
  assert np.abs(applied - logits).max() <= 1e-4
  assert np.abs(applied - trained).max() <= 2e-3
  np.testing.assert_allclose(run(lora.merge(state.model_params)), applied, atol=1e-5)
