import pytest

from tests.helpers.text_models import make, make_tokenizer


@pytest.fixture(scope="module")
def lm():
  return make(tokenizer=make_tokenizer())
