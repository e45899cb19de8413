"""Published sizes and what lies between them."""

import pytest

from gptneo_jax.planning import scaling


@pytest.mark.parametrize(
  ("parameters", "batch", "rate"),
  [(125e6, 0.5e6, 6e-4), (1.3e9, 1e6, 2e-4), (2.7e9, 1e6, 1.6e-4), (13e9, 2e6, 1e-4)],
)
def test_their_own_sizes(parameters, batch, rate):
  found = scaling.published(parameters)
  assert found.batch == pytest.approx(batch) and found.rate == pytest.approx(rate)
  assert found.tokens == 20 * parameters and not found.smaller


def test_between_two_sizes_and_beyond_them():
  between = scaling.published(round((125e6 * 350e6) ** 0.5))
  assert between.rate == pytest.approx((6e-4 * 3e-4) ** 0.5, rel=1e-6)
  tiny, huge = scaling.published(1_331_328), scaling.published(10**11)
  assert tiny.smaller and tiny.rate == pytest.approx(6e-4) and tiny.batch == pytest.approx(0.5e6)
  assert not huge.smaller and huge.rate == pytest.approx(1e-4)


def test_rates_fall_with_size():
  rates = [scaling.published(10**power).rate for power in range(6, 12)]
  assert rates == sorted(rates, reverse=True)
