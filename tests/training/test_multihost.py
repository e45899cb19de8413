"""Who feeds which rows on real topologies, what a launcher's environment says, signals."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gptneo_jax import sharding
from gptneo_jax.errors import UserError
from gptneo_jax.planning import topology
from gptneo_jax.training import multihost
from tests.helpers import HELPERS

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
  ("v5p:2x2x4", (1, 16, 1), 4, False),
  ("v5p:2x2x4", (2, 4, 2), 4, False),
  ("v5p:2x4x4", (1, 8, 4), 4, False),
  ("v5p:4x4x4", (1, 64, 1), 16, False),
  ("v5p:4x4x4", (1, 16, 4), 8, False),
  ("v6e:2x4", (1, 4, 2), 2, True),
  ("v6e:4x4", (1, 16, 1), 4, False),
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


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


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


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    # A program in an allocation of SLURM that no srun has started; a step of one task; of four.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, True),
    ({"SLURM_STEP_NUM_TASKS": ""}, False),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"PMI_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
    ({"MEGASCALE_NUM_SLICES": "2"}, True),
  ],
)
def test_what_a_launcher_says(environment, several, monkeypatch):
  for name in (*os.environ, *environment):
    if name.startswith(("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_")):
      monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(multihost.glob, "glob", lambda pattern: [])  # no TPU here
  assert multihost._in_cluster() == several


@pytest.mark.parametrize(
  ("environment", "several"),
  [({}, True), ({"COLAB_RELEASE_TAG": "1"}, False), ({"TPU_SKIP_MDS_QUERY": "1"}, False)],
)
def test_a_tpu_machine_may_be_one_of_several(environment, several, monkeypatch):
  for name in ("COLAB_RELEASE_TAG", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(multihost.glob, "glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.setattr(multihost.importlib.util, "find_spec", lambda name: object())
  assert multihost._in_cluster() == several


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", 2, None), "go together"),
    ((None, None, 0), "go together"),
    (("host", 2, 0), "'host' is not HOST:PORT"),
    (("host:1", 2, 2), "process_id"),
  ],
)
def test_arguments(arguments, message):
  with pytest.raises(UserError, match=message), multihost.joined(*arguments):
    pass


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


@pytest.mark.processes
@pytest.mark.parametrize("number", [0, 1])
def test_the_other_never_comes(number):
  code = f"""
from gptneo_jax.training import multihost
multihost._JOIN_SECONDS = 1
with multihost.joined("{free_address()}", 2, {number}):
  print("joined")
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith("error: not all processes have joined within 1 s")
  assert done.stderr.count("\n") == 1


@pytest.mark.processes
def test_three_processes(tmp_path):
  address = free_address()
  flags = "--xla_force_host_platform_device_count=2"
  script = HELPERS / "hosts_checks.py"
  processes = [
    subprocess.Popen(
      [sys.executable, script, address, str(number), tmp_path],
      env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for number in range(3)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=100) for process in processes]
  stops = set()
  for process, (out, err) in zip(processes, outputs):
    assert process.returncode == 1, (out, err)
    found = json.loads(out.splitlines()[-1])  # and no advice to continue
    assert found["rows"]
    stops.add(found["stop"])
    assert found["gathered"] == [{"of": n, "as": "x" * (1 + n)} for n in range(3)]
    assert (
      err.splitlines()[-1] == f"error on process 0 ({socket.gethostname()}): {tmp_path} is full"
    )
    assert "Traceback" not in err
  assert len(stops) == 1 and 2 < min(stops) < 500  # all at one step
