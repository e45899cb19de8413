"""Killed, stopped, its disk full or its files damaged: a run ends as one that was left alone.

`experiments/crash_campaign.py` does more of the same.
"""

import pytest

from tests.helpers import crashes

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
  return crashes.Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize(("kind", "seed"), crashes.schedule(list(crashes.KINDS), 20, 1000))
def test_it_ends_as_the_run_left_alone(campaign, kind, seed):
  print(campaign.disturb(kind, seed))
