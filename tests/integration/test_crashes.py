"""Killed, stopped, its disk full or its files damaged: a run ends as one that was left alone.

`experiments/crash_campaign.py` does more of the same.
"""

import pytest

from tests.helpers import crashes

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
  return crashes.Campaign(tmp_path_factory.mktemp("campaign"))


# Of the ways that need fewer processes more.
RUNS = [*crashes.KINDS, "killed", "killed while saving"]
RUNS += ["newest checkpoint truncated", "a bit of the newest flipped", "two newest damaged"] * 2


@pytest.mark.parametrize(("kind", "seed"), crashes.schedule(RUNS, 20, 1000))
def test_it_ends_as_the_run_left_alone(campaign, kind, seed):
  print(campaign.disturb(kind, seed))
