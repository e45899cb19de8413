"""Files of events, as tensorboardX's own messages and checksums read them."""

import math

from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import SessionLog

from gptneo_jax.training import events
from tests.helpers.events import read


def test_a_file_begins_with_its_version_and_what_is_void():
  version, start = read(events.beginning(300))
  assert version.file_version == "brain.Event:2" and version.wall_time > 1.7e9
  assert start.step == 300 and start.session_log.status == SessionLog.START


@given(
  st.integers(0, 2**63 - 1),
  st.dictionaries(st.text(max_size=200), st.floats(width=32), max_size=20),
)
def test_scalars(step, values):
  (event,) = read(events.scalars(step, values))
  assert event.step == step and event.wall_time > 1.7e9
  found = {value.tag: value.simple_value for value in event.summary.value}
  assert found.keys() == values.keys()
  for tag, value in values.items():
    assert found[tag] == value or (math.isnan(value) and math.isnan(found[tag]))


def test_what_no_float32_holds_is_infinite():
  (event,) = read(events.scalars(1, {"a": 1e300, "b": -1e300}))
  assert [value.simple_value for value in event.summary.value] == [math.inf, -math.inf]
