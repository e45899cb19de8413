"""Moving means, bars and legends of the pictures."""

import pytest

from gptneo_jax.evals import pictures


def test_smoothed():
  """The mean is symmetric, also at the ends, so that a straight line is unchanged."""
  line = [3.0, 2.0, 1.0, 0.0, -1.0]
  assert pictures.smoothed(line, 3) == pytest.approx(line)
  assert pictures.smoothed([0, 3, 0, 6, 0], 3) == pytest.approx([0, 1, 3, 2, 0])
  assert len(pictures.smoothed([], 3)) == 0


def test_bars_carry_their_numbers_and_a_legend_covers_nothing(tmp_path):
  series = {"ours": {"small": 1.2, "large": (1500.0, 1400.0, 1700.0)}, "theirs": {"small": 2.5}}
  with pictures.drawing(tmp_path / "p.png", 1) as (axis,):
    pictures.bars(axis, series)
    pictures.legend(axis)
  shown = {text.get_text() for text in axis.texts}
  assert shown == {"1.20", "1,500", "2.50"}
  box, inside = axis.get_legend().get_window_extent(), axis.get_window_extent()
  assert box.y1 < inside.y0
