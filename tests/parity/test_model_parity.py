"""Logits, loss, gradients and training of the decoder against transformers' eager PyTorch.

Both are float32 and round; a float64 referee says how much. The rule: our error is at most twice
PyTorch's, tensor by tensor, and where PyTorch's is small the two agree outright.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.activations import ACT2FN  # noqa: E402

from gptneo_jax import config as config_module  # noqa: E402
from gptneo_jax.config import ModelConfig  # noqa: E402
from gptneo_jax.model.activations import ACTIVATIONS, ALIASES, activate  # noqa: E402
from gptneo_jax.model.decoder import Decoder  # noqa: E402
from gptneo_jax.model.losses import token_losses  # noqa: E402
from tests.helpers import hf_models, referee  # noqa: E402
from tests.helpers.comparison import NOT_WORSE, compare, largest, make_batch, rms  # noqa: E402
from tests.helpers.compiling import AS_IN_USE  # noqa: E402

pytestmark = pytest.mark.parity


def torch_logits(model, batch):
  return model(
    torch.tensor(batch.ids_BxT),
    attention_mask=torch.tensor(batch.real_BxT.astype(np.int64)),
    position_ids=torch.tensor(batch.positions_BxT),
  ).logits


def torch_run(model, batch):
  """Loss and gradients by PyTorch's names; the shift of the labels is transformers' own."""
  model.zero_grad()
  loss = model(
    torch.tensor(batch.ids_BxT),
    attention_mask=torch.tensor(batch.real_BxT.astype(np.int64)),
    position_ids=torch.tensor(batch.positions_BxT),
    labels=torch.tensor(batch.torch_labels_BxT),
  ).loss
  loss.backward()
  return loss.item(), hf_models.tensors(model, gradients=True)


def mean_loss(model, params, batch):
  """Mean over the labels that count, and the logits."""
  padded = not batch.real_BxT.all()
  logits_BxTxV = model.apply(
    {"params": params},
    batch.ids_BxT,
    positions_BxT=batch.positions_BxT if padded else None,
    segment_ids_BxT=batch.real_BxT.astype(np.int32) if padded else None,
    method="logits",
  )
  kept_BxT = batch.labels_BxT != -100
  labels_BxT = np.where(kept_BxT, batch.labels_BxT, 0)
  losses = token_losses(logits_BxTxV, labels_BxT, kept_BxT.astype(np.float32))
  return losses.nll_BxT.sum() / kept_BxT.sum(), logits_BxTxV


def our_run(config, params, batch):
  run = jax.jit(
    jax.value_and_grad(lambda p: mean_loss(Decoder(config), p, batch), has_aux=True),
    compiler_options=AS_IN_USE,
  )
  (loss, logits_BxTxV), gradients = run(params)
  return np.asarray(logits_BxTxV), float(loss), jax.tree.map(np.asarray, gradients)


def referee_state(model):
  return {name: x.astype(np.float64) for name, x in hf_models.tensors(model).items()}


def referee_logits(model, batch):
  return referee.logits(
    referee_state(model), model.config, batch.ids_BxT, batch.real_BxT, batch.positions_BxT
  )


def referee_gradients(model, batch):
  """Loss and gradients, float64, by PyTorch's names."""
  loss = lambda state, xp: (
    referee.loss(
      state, model.config, batch.ids_BxT, batch.labels_BxT, batch.real_BxT, batch.positions_BxT, xp
    ),
    None,
  )
  value, _, gradients = referee.gradients(loss, referee_state(model))
  return value, gradients


MODELS = {  # how each is made, and its batch; window 6, so T is several windows
  "alternating": (lambda std: hf_models.gpt_neo(std=std), {}),
  "all_global": (lambda std: hf_models.gpt_neo(("global",), layers=2, std=std), {}),
  "all_local": (lambda std: hf_models.gpt_neo(("local",), layers=3, std=std), {}),
  "two_global_one_local": (
    lambda std: hf_models.gpt_neo(("global", "global", "local"), layers=6, std=std),
    {},
  ),
  "odd_heads": (
    lambda std: hf_models.gpt_neo(hidden=21, heads=3, intermediate=50, window=7, std=std),
    {"T": 61},
  ),
  "shorter_than_the_window": (lambda std: hf_models.gpt_neo(window=16, std=std), {"T": 9}),
  "at_the_window": (lambda std: hf_models.gpt_neo(window=16, std=std), {"T": 16}),
  "one_past_the_window": (lambda std: hf_models.gpt_neo(window=16, std=std), {"T": 17}),
  "left_padded": (lambda std: hf_models.gpt_neo(std=std), {"B": 3, "pads": [0, 9, 29]}),
  "gpt2": (lambda std: hf_models.gpt2(std=std), {}),
  "gpt2_left_padded": (lambda std: hf_models.gpt2(std=std), {"pads": [13, 0]}),
  **{
    name: (lambda std, make=make, settings=settings: make(std=std, **settings), {"pads": [0, 9]})
    for name, (make, settings) in hf_models.SETTINGS.items()
  },
}


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
  make, options = MODELS[name]
  model = make(0.1)
  batch = make_batch(model.config.vocab_size, **options)
  config = hf_models.config_of(model)
  forward = jax.jit(
    lambda params: mean_loss(Decoder(config), params, batch)[1], compiler_options=AS_IN_USE
  )
  for std in (0.02, 0.1, 0.3):
    model = make(std)
    with torch.no_grad():
      theirs = torch_logits(model, batch).numpy()
    ours = np.asarray(forward(hf_models.to_params(hf_models.tensors(model), config)))
    errors = compare("logits", ours, theirs, referee_logits(model, batch), batch.real_BxT)
    print(f"logits, {name}, std {std}: ours {errors[0]:.2e}, PyTorch {errors[1]:.2e}")


@pytest.mark.parametrize(
  "name, std",
  [
    ("alternating", 0.1),
    ("two_global_one_local", 0.1),
    ("odd_heads", 0.02),
    ("left_padded", 0.3),
    ("gpt2", 0.1),
    *((name, 0.1) for name in hf_models.SETTINGS if name not in ("unscaled", "gelu_fast")),
  ],
)
def test_loss_and_gradients(name, std):
  """The rule, for gradients: root-mean-square of each tensor, and the worst relative to its size.

  The largest of the few entries of one bias is chance, a unit in the last place for either side.
  """
  make, options = MODELS[name]
  model = make(std)
  batch = make_batch(model.config.vocab_size, **options)
  config = hf_models.config_of(model)
  params = hf_models.to_params(hf_models.tensors(model), config)

  their_loss, their_gradients = torch_run(model, batch)
  _, our_loss, our_gradients = our_run(config, params, batch)
  true_loss, true_gradients = referee_gradients(model, batch)
  assert our_loss == pytest.approx(true_loss, rel=5e-7)
  assert our_loss == pytest.approx(their_loss, rel=5e-7)

  leaves = jax.tree_util.tree_leaves_with_path(our_gradients)
  theirs = jax.tree.leaves(hf_models.to_params(their_gradients, config))
  truths = jax.tree.leaves(hf_models.to_params(true_gradients, config))
  our_worst = their_worst = 0.0
  for (path, ours), their, truth in zip(leaves, theirs, truths, strict=True):
    tensor = jax.tree_util.keystr(path, simple=True, separator="/")
    if tensor.endswith("attn/k/bias"):  # adds the same to every score of a query: no gradient
      assert largest(ours) < 1e-7
      continue
    assert rms(ours - truth) <= NOT_WORSE * rms(their - truth), tensor
    our_worst = max(our_worst, largest(ours - truth) / largest(truth))
    their_worst = max(their_worst, largest(their - truth) / largest(truth))
  print(f"gradients, {name}, std {std}: ours {our_worst:.2e}, PyTorch {their_worst:.2e}, relative")
  assert our_worst <= NOT_WORSE * their_worst


@pytest.mark.parametrize("name", [*ACTIVATIONS, *ALIASES])
def test_every_activation_is_the_function_of_its_name(name):
  """Values and derivatives of all that transformers has, but for those with parameters."""
  x = np.concatenate([np.linspace(-12, 12, 4001), [-3.0, 0.0, 3.0, 6.0]]).astype(np.float32)
  theirs = torch.tensor(x, requires_grad=True)
  ACT2FN[name](theirs).sum().backward()
  function = lambda x: activate(x, ALIASES.get(name, name))
  both = jax.jit(jax.vmap(jax.value_and_grad(function)), compiler_options=AS_IN_USE)
  values, derivatives = both(x)
  np.testing.assert_allclose(values, ACT2FN[name](theirs).detach(), rtol=3e-7, atol=1.2e-6)
  np.testing.assert_allclose(derivatives, theirs.grad, rtol=3e-7, atol=4e-6)


def test_no_activation_is_left_out():
  assert set(ACT2FN) - {"prelu", "xielu"} == ACTIVATIONS.keys() | ALIASES.keys()
  assert not ACTIVATIONS.keys() & ALIASES.keys()
  assert tuple(ACTIVATIONS) == config_module.ACTIVATIONS


# --- the comparison can fail -------------------------------------------------------------------


MISTAKES = {
  "window forgotten": {"attention_pattern": ("global", "global")},
  "order of the layers": {"attention_pattern": ("local", "global")},
  "one key too few": {"window_size": 5},
  "one key too many": {"window_size": 7},
  "epsilon": {"layer_norm_epsilon": 1e-4},
  "scale": {},
  "positions": {},
  "padding": {},
}


def test_a_mistake_is_noticed(monkeypatch):
  """The comparison passes, and any one mistake makes it fail."""
  model = hf_models.gpt_neo(layers=2, std=0.1)
  batch = make_batch(model.config.vocab_size, pads=[0, 9])
  config = hf_models.config_of(model)
  params = hf_models.to_params(hf_models.tensors(model), config)
  with torch.no_grad():
    theirs = torch_logits(model, batch).numpy()
  truth = referee_logits(model, batch)

  def check(config, batch_used):
    forward = jax.jit(lambda params: mean_loss(Decoder(config), params, batch_used)[1])
    compare("logits", np.asarray(forward(params)), theirs, truth, batch.real_BxT)

  check(config, batch)
  for mistake, changes in MISTAKES.items():
    used = dataclasses.replace(batch)
    with monkeypatch.context() as patch:
      if mistake == "scale":
        patch.setattr(ModelConfig, "attention_scale", property(lambda c: c.head_dim**-0.5))
      elif mistake == "positions":
        used.positions_BxT = np.broadcast_to(np.arange(40), (2, 40))
      elif mistake == "padding":
        used.real_BxT = np.ones_like(batch.real_BxT)
      with pytest.raises(AssertionError, match="logits: ours"):
        check(config.replace(**changes), used)
        pytest.fail(f"not noticed: {mistake}")


def test_padded_vocabulary_changes_nothing():
  """The same logits on real ids, no probability on padded ones, and no gradient into their rows."""
  model = hf_models.gpt_neo(layers=2, vocab=61)
  batch = make_batch(61)
  config = hf_models.config_of(model)
  params = hf_models.to_params(hf_models.tensors(model), config)
  padded = config.replace(vocab_multiple=16)
  assert padded.padded_vocab_size == 64
  more = {**params, "wte": np.pad(params["wte"], ((0, 3), (0, 0)), constant_values=3.0)}

  logits_BxTxV, loss, gradients = our_run(config, params, batch)
  padded_logits, padded_loss, padded_gradients = our_run(padded, more, batch)
  np.testing.assert_allclose(padded_logits[..., :61], logits_BxTxV, atol=1e-6)
  probs = jax.nn.softmax(padded_logits)
  assert (np.asarray(probs[..., 61:]) == 0).all()
  assert padded_loss == pytest.approx(loss, rel=1e-6)
  assert (padded_gradients["wte"][61:] == 0).all()
  np.testing.assert_allclose(padded_gradients["wte"][:61], gradients["wte"], atol=1e-6)


# --- training ----------------------------------------------------------------------------------


def test_training_curve():
  """50 steps of AdamW from the same weights on the same batches: the same curve."""
  steps, B, T, vocab = 50, 4, 40, 61
  model = hf_models.gpt_neo(hidden=48, layers=4, window=8, vocab=vocab, std=0.05)
  config = hf_models.config_of(model)
  weights = hf_models.to_params(hf_models.tensors(model), config)
  rng = np.random.default_rng(0)
  # Sums of earlier tokens, so that there is something to learn within and beyond the window.
  ids = rng.integers(0, vocab, (steps, B, T))
  for t in range(12, T):
    ids[:, :, t] = (ids[:, :, t - 1] + ids[:, :, t - 12] // 8) % vocab

  adam = torch.optim.AdamW(
    model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
  )
  theirs = []
  for ids_BxT in torch.tensor(ids):
    adam.zero_grad()
    loss = model(ids_BxT, labels=ids_BxT).loss
    loss.backward()
    adam.step()
    theirs.append(loss.item())

  optimiser = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  decoder = Decoder(config)

  @jax.jit
  def step(params, state, ids_BxT):
    def loss(params):
      logits_BxTxV = decoder.apply({"params": params}, ids_BxT, method="logits")
      return token_losses(logits_BxTxV[:, :-1], ids_BxT[:, 1:]).nll_BxT.mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimiser.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  params = jax.tree.map(jnp.asarray, weights)
  state, ours = optimiser.init(params), []
  for ids_BxT in ids:
    params, state, value = step(params, state, ids_BxT)
    ours.append(float(value))

  gap = np.abs(np.divide(ours, theirs) - 1).max()
  print(f"training: {theirs[0]:.3f} to {theirs[-1]:.3f} nats, largest relative gap {gap:.1e}")
  assert theirs[-1] < theirs[0] - 0.3
  assert gap < 1e-4
