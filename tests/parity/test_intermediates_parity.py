"""Hidden states and attention weights of every layer against transformers' eager PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptneo_jax.model import heads, intermediates  # noqa: E402
from tests.helpers import hf_models  # noqa: E402
from tests.helpers.head_cases import make_case  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_hidden_states_and_attentions(family):
  case = make_case(family, "lm", 0.1, layers=4, padding="left")
  variables = {"params": hf_models.to_params(hf_models.tensors(case.hf), case.config)}
  with torch.no_grad():
    theirs = case.hf(
      torch.tensor(case.ids_BxT),
      attention_mask=torch.tensor(case.real_BxT.astype(np.int64)),
      position_ids=torch.tensor(case.positions_BxT),
      output_hidden_states=True,
      output_attentions=True,
    )
  options = dict(positions_BxT=case.positions_BxT, segment_ids_BxT=case.real_BxT.astype(np.int32))
  module = heads.build(case.config)
  both = jax.jit(
    lambda v: [f(module, v, case.ids_BxT, **options) for f in (
      intermediates.hidden_states, intermediates.attentions)]
  )  # fmt: skip
  states, attentions = both(variables)
  assert len(states) == len(theirs.hidden_states) == 5
  assert len(attentions) == len(theirs.attentions) == 4
  for our, their in zip(states, theirs.hidden_states):
    np.testing.assert_allclose(our[case.real_BxT], their.numpy()[case.real_BxT], atol=2e-5)
  for our, their in zip(attentions, theirs.attentions):
    queries = lambda x: np.moveaxis(np.asarray(x), 1, 2)[case.real_BxT]
    np.testing.assert_allclose(queries(our), queries(their), atol=1e-6)
