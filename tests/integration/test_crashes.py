"""Killed, stopped, its disk full or its files damaged: a run ends as one that was left alone.

`experiments/crash_campaign.py` does more of the same.
"""

import pytest

from tests.helpers import crash_runs, crashes

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
  return crashes.Campaign(tmp_path_factory.mktemp("campaign"))


# Of one process, most of them started once: a start takes its time. What a lost host does to the
# others, and what a signal to one of them, test_joining shows; the campaign has all.
DISTURBED = ["killed while saving", "disk full", "a save fails after its start", "folder removed"]
DAMAGED = ["newest checkpoint truncated", "a bit of the newest flipped", "two newest damaged"]


@pytest.mark.parametrize(("kind", "seed"), crashes.schedule(DISTURBED, 4, 1000))
def test_it_ends_as_the_run_left_alone(campaign, kind, seed):
  print(campaign.disturb(kind, seed))


@pytest.fixture(scope="module")
def in_this_process(tmp_path_factory):
  folder = tmp_path_factory.mktemp("damage")
  # An evaluation falls on the step that `interrupt` stops at, where a shorter run has its last.
  return crashes.Campaign(folder, crash_runs.InThisProcess, eval_every=(crash_runs.STEPS - 4) // 2)


@pytest.mark.parametrize(("kind", "seed"), crashes.schedule(DAMAGED, 16, 2000))
def test_damaged_checkpoints(in_this_process, kind, seed):
  print(in_this_process.disturb(kind, seed))


def test_a_run_may_stop_where_it_cannot_be_saved(campaign, tmp_path):
  """At once, with one line; and its checkpoints are there."""
  settings = campaign.settings | {"on_failed_save": "stop", "steps": 1000}
  run = crash_runs.Run(tmp_path / "run", settings, hosts=1)
  run.start()
  run.until_step(5)
  crashes.limit_files(run, 0)
  assert run.wait() == [1] and "Traceback" not in run.said, run.said
  last = run.said.splitlines()[-1]
  assert "was not saved: File too large; the last good one is" in last, run.said
  assert run.saved()
