"""Logits in bfloat16: no further from float32 than PyTorch's are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax.model import heads  # noqa: E402
from tests.helpers import hf_models  # noqa: E402
from tests.helpers.comparison import largest, rms  # noqa: E402
from tests.helpers.compiling import AS_IN_USE  # noqa: E402
from tests.helpers.head_cases import make_case  # noqa: E402

pytestmark = pytest.mark.parity


def bfloat16_distances(hf, config, params, ids_BxT):
  """Root mean squares of differences of logits: ours to PyTorch's in bfloat16, and of both to
  float32 from the same, rounded weights. And the largest of the first and of PyTorch's."""
  config = config.replace(dtype="bfloat16", param_dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  forward = jax.jit(
    lambda p: heads.build(config).apply({"params": p}, ids_BxT, method="logits"),
    compiler_options=AS_IN_USE,
  )
  ours = np.asarray(forward(params))
  mask = torch.ones(ids_BxT.shape, dtype=torch.int64)
  with torch.no_grad():
    hf = hf.to(torch.bfloat16)
    theirs = hf(torch.tensor(ids_BxT), attention_mask=mask).logits.float().numpy()
    exact = hf.float()(torch.tensor(ids_BxT), attention_mask=mask).logits.numpy()
  apart, our, their = ours - theirs, ours - exact, theirs - exact
  return rms(apart), rms(our), rms(their), largest(apart), largest(their)


def check_bfloat16(name, apart, our, their, apart_most, their_most):
  """Two roundings that err alike, and know nothing of each other, are √2 of either apart."""
  print(
    f"bfloat16, {name}: apart {apart:.2e} (largest {apart_most:.2e}), our error {our:.2e},"
    f" PyTorch's {their:.2e} (largest {their_most:.2e})"
  )
  assert our <= their
  assert apart <= np.sqrt(2) * their
  assert apart_most <= 1.5 * their_most


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_bfloat16(family):
  case = make_case(family, "lm", 0.1, layers=4, heads=4, head_dim=8, T=40)
  params = hf_models.to_params(hf_models.tensors(case.hf), case.config)
  check_bfloat16(family, *bfloat16_distances(case.hf, case.config, params, case.ids_BxT))


def test_bfloat16_of_a_trained_model(shared_data):
  import transformers

  folder = str(shared_data / "checkpoints" / "neo_docs_hf")
  hf = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  with open(transformers.__file__, encoding="utf-8") as file:
    ids = transformers.AutoTokenizer.from_pretrained(folder)(file.read()[:8000]).input_ids
  ids_BxT = np.array(ids[:1200]).reshape(2, 600)
  config = hf_models.config_of(hf)
  params = hf_models.to_params(hf_models.tensors(hf), config)
  check_bfloat16("trained", *bfloat16_distances(hf, config, params, ids_BxT))
