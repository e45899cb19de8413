"""Who feeds which rows on real topologies, slices, shared folders, signals."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from gptneo_jax import sharding
from gptneo_jax.errors import UserError
from gptneo_jax.planning import topology
from gptneo_jax.training import multihost
from tests.helpers import started_hosts

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no libtpu: TPU's compiler is not installed"
)

# Of each shape: chip, mesh (data, fsdp, tensor), groups of hosts that hold the same rows, and
# whether each group's rows follow on each other.
SLICES = [
  ("v5e:2x4", (1, 8, 1), 2, True),
  ("v5e:4x4", (1, 16, 1), 4, False),
  ("v5e:4x4", (16, 1, 1), 4, False),
  ("v5e:4x4", (2, 8, 1), 4, True),
  ("v5e:4x4", (4, 4, 1), 4, False),
  ("v5e:4x4", (1, 8, 2), 4, True),
  ("v5e:4x4", (1, 4, 4), 2, True),
  ("v5e:4x4", (1, 2, 8), 2, True),
  ("v5e:4x4", (1, 1, 16), 1, True),
  ("v5e:4x8", (1, 32, 1), 8, False),
  ("v5e:8x8", (1, 64, 1), 16, False),
  ("v5e:8x8", (64, 1, 1), 16, False),
  ("v5e:8x8", (1, 32, 2), 16, True),
  ("v5e:8x8", (2, 32, 1), 16, False),
  ("v5e:8x8", (4, 16, 1), 16, True),
  ("v5e:8x8", (1, 16, 4), 8, True),
  ("v5e:16x16", (1, 256, 1), 64, False),
  ("v5e:16x16", (4, 64, 1), 64, False),
  ("v5e:16x16", (1, 32, 8), 16, True),
  ("v4:2x2x2", (1, 8, 1), 2, False),
  ("v4:2x2x2", (1, 4, 2), 2, False),
  ("v4:2x2x2", (2, 2, 2), 2, True),
  ("v4:2x2x4", (2, 4, 2), 4, False),
  ("v4:4x4x8", (1, 16, 8), 4, False),
  ("v4:2x2x4", (1, 16, 1), 4, False),
  ("v4:2x2x4", (16, 1, 1), 4, False),
  ("v4:2x2x4", (1, 8, 2), 4, False),
  ("v4:2x2x4", (1, 4, 4), 4, True),
  ("v5p:2x2x4", (1, 16, 1), 4, False),
  ("v5p:2x2x4", (16, 1, 1), 4, False),
  ("v5p:2x2x4", (1, 8, 2), 4, False),
  ("v5p:2x2x4", (1, 4, 4), 4, True),
  ("v5p:2x2x4", (2, 4, 2), 4, False),
  ("v5p:2x4x4", (1, 8, 4), 4, False),
  ("v5p:4x4x4", (1, 64, 1), 16, False),
  ("v5p:4x4x4", (1, 16, 4), 8, False),
  ("v6e:2x4", (1, 4, 2), 2, True),
  ("v6e:4x4", (1, 16, 1), 4, False),
  ("v6e:4x4", (16, 1, 1), 4, False),
  ("v6e:4x4", (1, 4, 4), 2, True),
  ("v6e:8x8", (1, 64, 1), 16, False),
  ("v6e:8x8", (1, 32, 2), 16, True),
  ("v6e:8x8", (1, 16, 4), 8, True),
  # No axis of the torus, nor several, are of these sizes: they are split.
  ("v6e:4x4", (2, 8, 1), 4, None),
  ("v6e:4x4", (1, 8, 2), 4, None),
  ("v6e:4x4", (2, 2, 4), 2, None),
  ("v6e:8x16", (2, 64, 1), 32, None),
  ("v5p:2x2x4", (2, 2, 4), 4, None),
  ("v5p:4x4x4", (1, 32, 2), 16, None),
  ("v4:4x4x8", (2, 16, 4), 16, None),
]


def mesh_of(name, sizes):
  return sharding.make_mesh(*sizes, devices=topology.find(name).devices)


def is_run(rows):
  return rows[-1] - rows[0] + 1 == len(rows)


@needs_libtpu
@pytest.mark.parametrize(("name", "sizes", "groups", "contiguous"), SLICES)
def test_rows_and_streams_of_hosts(name, sizes, groups, contiguous):
  mesh, batch_size, num_streams = mesh_of(name, sizes), 512, 64
  rows = multihost.rows_by_host(mesh, batch_size)
  assert sorted(rows) == sorted({device.process_index for device in mesh.devices.flat})
  distinct = {tuple(of_host) for of_host in rows.values()}
  found = all(is_run(of_group) for of_group in distinct)
  print(f"{name}, mesh {sizes}: {len(rows)} hosts, {len(distinct)} groups, contiguous: {found}")
  assert len(distinct) == groups and contiguous in (None, found)
  # Every row is held by one group, and none by two; all hold as many.
  assert sorted(row for of_group in distinct for row in of_group) == list(range(batch_size))
  assert {len(of_group) for of_group in distinct} == {batch_size // groups}

  # Hosts of the same rows read the same streams; every stream is read by one group, whole.
  streams = multihost.streams_by_host(mesh, batch_size, num_streams)
  of_rows = {tuple(rows[host]): streams[host] for host in rows}
  assert all(streams[host] == of_rows[tuple(rows[host])] for host in rows)
  assert sorted(stream for of_group in of_rows.values() for stream in of_group) == [*range(64)]
  per_stream = batch_size // num_streams
  for of_group, read in of_rows.items():
    assert len(of_group) == len(read) * per_stream
    if found:  # then row r is of stream r // per_stream, as on one host
      assert {row // per_stream for row in of_group} == set(read)


def slices_of(name, count):
  topology.find(name)  # TPU's compiler is told that there is no TPU here
  return topologies.get_topology_desc(name, "tpu", num_slices=count).devices


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "count", "sizes"),
  [
    ("v5e:4x4", 2, (2, -1, 1)),
    ("v5e:4x4", 2, (-1, 4, 1)),
    ("v5e:4x4", 2, (-1, 1, 1)),
    ("v5e:4x4", 2, (2, -1, 4)),
    ("v6e:4x4", 2, (2, 8, 2)),  # an axis of the torus is split
    ("v5e:2x4", 4, (4, -1, 2)),
    ("v5p:2x2x4", 2, (2, -1, 4)),
  ],
)
def test_only_data_goes_across_slices(name, count, sizes):
  devices = slices_of(name, count)
  mesh = sharding.make_mesh(*sizes, devices=devices)
  assert sorted(device.id for device in mesh.devices.flat) == sorted(d.id for d in devices)
  of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  each = mesh.shape["data"] // count
  assert of_slice[:, 0, 0].tolist() == [number for number in range(count) for _ in range(each)]
  assert (of_slice == of_slice[:, :1, :1]).all()  # neighbours in fsdp and tensor are in one slice

  rows, streams = multihost.rows_by_host(mesh, 512), multihost.streams_by_host(mesh, 512, 64)
  assert sorted(rows) == sorted({device.process_index for device in devices})
  read = {tuple(rows[host]): streams[host] for host in rows}
  assert sorted(stream for of_group in read.values() for stream in of_group) == [*range(64)]
  assert sorted(row for of_group in read for row in of_group) == [*range(512)]


@needs_libtpu
@pytest.mark.parametrize("sizes", [(1, -1, 1), (2, 6, 4), (1, 12, -1)])
def test_weights_are_not_split_across_slices(sizes):
  with pytest.raises(ValueError, match=r"3 slices.* a multiple of 3.*set mesh\.data=3") as error:
    sharding.make_mesh(*sizes, devices=slices_of("v5e:4x4", 3))
  assert "\n" not in str(error.value)


@needs_libtpu
def test_streams_that_the_hosts_do_not_divide():
  with pytest.raises(UserError, match=r"num_streams 8 .* 16 hosts .* a multiple of 16"):
    multihost.streams_by_host(mesh_of("v5e:8x8", (1, 64, 1)), 512, 8)


@needs_libtpu
def test_hosts_that_share_a_part_of_their_rows():
  """Three devices to a row, four to a host: no batch can be shared out."""
  devices = np.array(topology.find("v5e:4x4").devices[:12])
  mesh = Mesh(devices.reshape(1, 4, 3), sharding.MESH_AXES)
  with pytest.raises(UserError, match=r"mesh\.tensor 3 .* the 4 devices of a host"):
    multihost.rows_by_host(mesh, 8)


def test_one_host_reads_everything():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert multihost.local_rows(mesh, 8).tolist() == [*range(8)]
  assert multihost.local_streams(mesh, 8, 4) == range(4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_is_asked_for_by_a_signal(number):
  before = signal.getsignal(number)
  stop = multihost.StopRequest()
  assert not stop()
  os.kill(os.getpid(), number)
  assert stop() and (stop.reason, stop.status) == (number.name, 143)
  stop.close()
  assert signal.getsignal(number) == before


@pytest.mark.parametrize("previous", [signal.default_int_handler, signal.SIG_DFL])
def test_a_second_interrupt_does_what_it_did_before(previous):
  before = signal.signal(signal.SIGINT, previous)
  try:
    stop = multihost.StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop() and (stop.reason, stop.status) == ("SIGINT", 130)
    assert signal.getsignal(signal.SIGINT) == previous
    stop.close()
    assert signal.getsignal(signal.SIGINT) == previous
  finally:
    signal.signal(signal.SIGINT, before)


FOLDERS = """
import os, sys
from etils import epath
from gptneo_jax.training import joining, multihost
address, number, folder, seconds = sys.argv[1:]
multihost._SHARED_SECONDS = float(seconds)
os.chdir(folder)
with joining.joined(address, 2, int(number)):
  print(multihost.require_shared(epath.Path("runs/x")))
"""


@pytest.mark.processes
@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_of_each_host_is_no_shared_one(shared, tmp_path):
  folders = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
  address, seconds = started_hosts.free_address(), "30" if shared else "1"
  for folder in folders:
    folder.mkdir(exist_ok=True)
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", FOLDERS, address, str(number), folder, seconds],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for number, folder in enumerate(folders)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=100) for process in processes]
  assert not list(tmp_path.rglob(".seen_by_all_*"))
  if shared:
    for process, (out, err) in zip(processes, outputs):
      assert (process.returncode, err) == (0, "") and out.splitlines()[-1] == "runs/x"
    return
  host = socket.gethostname()
  for process, (out, err) in zip(processes, outputs):
    assert process.returncode == 1 and "runs/x" not in out, (out, err)
    assert err.splitlines()[-1].startswith(
      f"error on process 1 ({host}): what process 0 ({host}) writes in {folders[0]}/runs/x is not"
      f" seen in {folders[1]}/runs/x here"
    )
    assert "Traceback" not in err
