"""The processes meet at a port: who is missing, who is there twice, who is lost."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptneo_jax.errors import UserError
from gptneo_jax.training.meeting import meet
from tests.helpers.started_hosts import free_address


def met(address, *numbers, count=None, seconds=20.0):
  """What `meet` gives or raises in each of these processes, which are threads here."""
  count = len(numbers) if count is None else count
  with ThreadPoolExecutor(len(numbers)) as threads:
    futures = [threads.submit(meet, address, count, number, seconds) for number in numbers]
  return [future.exception() or future.result() for future in futures]


def test_all_know_all_hosts_and_the_port_is_free_again():
  address = free_address()
  for _ in range(2):  # a run that is started again at once
    peers = met(address, 1, 0, 2)
    assert [one.hosts for one in peers] == [dict.fromkeys(range(3), socket.gethostname())] * 3
    assert peers[0].named([2, 1]) == "process 1 ({0}), process 2 ({0})".format(socket.gethostname())
    assert [one.lost(0) for one in peers] == [[], [], []]


def test_those_that_are_missing_are_named_to_all():
  found = met(free_address(), 0, 2, 3, count=5, seconds=1.0)
  assert all(isinstance(error, UserError) for error in found)
  assert {str(error).partition(";")[0] for error in found} == {
    "of 5 processes these have not joined within 1 s: 1, 4"
  }


@pytest.mark.parametrize(
  ("numbers", "count", "message"),
  [
    ((0, 1, 1), 3, "two processes are number 1, on "),
    ((0, 3), 3, "is number 3, and process 0 is of 3"),
  ],
)
def test_numbers_that_cannot_be(numbers, count, message):
  for error in met(free_address(), *numbers, count=count):
    assert isinstance(error, UserError) and message in str(error)


def test_process_0_is_not_reached():
  address = free_address()
  [error] = met(address, 1, count=2, seconds=0.1)
  assert f"process 0 has not been reached at {address} within 0.1 s" in str(error)


def test_a_port_that_is_taken():
  with socket.create_server(("", 0)) as taken:
    [error] = met(f"127.0.0.1:{taken.getsockname()[1]}", 0, count=2, seconds=0.1)
  assert "cannot listen on port" in str(error)


def test_others_who_knock_are_not_counted():
  address = free_address()
  host, _, port = address.rpartition(":")
  with ThreadPoolExecutor(2) as threads:
    first = threads.submit(meet, address, 2, 0, 20.0)
    while True:
      try:
        knocking = socket.create_connection((host, int(port)))
        break
      except OSError:
        pass
    with knocking:
      knocking.sendall(b"GET / HTTP/1.1\r\n\r\n\n")
      second = threads.submit(meet, address, 2, 1, 20.0)
      assert first.result().hosts.keys() == second.result().hosts.keys() == {0, 1}


def test_a_lost_process_is_seen_at_once():
  first, second, third = met(free_address(), 0, 1, 2)
  assert first.lost(0) == []
  for connection in second._connections.values():
    connection.close()  # as the kernel does for a process that is killed
  assert first.lost(10) == [1]
  assert third.lost(0) == []  # it is connected with the first alone
  for connection in first._connections.values():
    connection.close()
  assert third.lost(10) == [0]
