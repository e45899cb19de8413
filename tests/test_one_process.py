"""Programs of one process where a launcher has started several: what is known of it, and said."""

import http.server
import os
import threading
import types

import pytest

from gptneo_jax import cli, convert, evaluate, generate, predict, prepare
from gptneo_jax.errors import UserError
from gptneo_jax.serve import __main__ as serve


def launched(monkeypatch, environment) -> None:
  """Only what a launcher has left in the environment, on a machine without a TPU."""
  for name in os.environ:
    if name.startswith(("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_")):
      monkeypatch.delenv(name)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(cli.glob, "glob", lambda pattern: [])


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
  launched(monkeypatch, environment)
  assert cli.one_of_several() == several


@pytest.mark.parametrize(
  ("environment", "several"),
  [({}, True), ({"COLAB_RELEASE_TAG": "1"}, False), ({"TPU_SKIP_MDS_QUERY": "1"}, False)],
)
def test_a_tpu_machine_may_be_one_of_several(environment, several, monkeypatch):
  monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
  launched(monkeypatch, environment)
  monkeypatch.setattr(cli.glob, "glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
  assert cli.one_of_several() == several


@pytest.mark.parametrize(
  ("program", "arguments"),
  [
    (convert, ["verify", "a", "b"]),
    (evaluate, ["--checkpoint", "a", "--data", "b"]),
    (generate, ["--checkpoint", "a", "--prompt", "b"]),
    (predict, ["--checkpoint", "a", "--input", "b"]),
    (prepare, ["a", "b", "--tokenizer", "c"]),
    (serve, ["--checkpoint", "a"]),
  ],
  ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_program_of_one_process_is_not_started_by_four(program, arguments, monkeypatch):
  launched(monkeypatch, {"SLURM_STEP_NUM_TASKS": "4"})
  with pytest.raises(UserError) as error:
    program.main(arguments)
  name = program.__name__.removesuffix(".__main__")
  assert str(error.value).startswith(
    f"python -m {name} is of one process, and 4 of it have been started (SLURM_STEP_NUM_TASKS);"
    f" run it once: srun --ntasks=1 python -m {name} …"
  )
  assert ("--part i/n" in str(error.value)) == (program is prepare)


def test_a_part_of_the_preparation_for_each_of_four(monkeypatch, tmp_path):
  launched(monkeypatch, {"SLURM_STEP_NUM_TASKS": "4"})
  with pytest.raises(UserError, match=r"nothing\.jsonl"):  # it has gone on, to the documents
    prepare.main([str(tmp_path / "nothing.jsonl"), "b", "--tokenizer", "c", "--part", "0/4"])


TWO_HOSTS = {"TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.mark.parametrize(
  ("environment", "hosts"),
  [
    (TWO_HOSTS, 2),
    (TWO_HOSTS | {"MEGASCALE_NUM_SLICES": "2"}, 4),
    (TWO_HOSTS | {"TPU_PROCESS_BOUNDS": "1,1,1"}, 1),  # the chips of this host alone
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
    ({}, 1),
  ],
)
def test_one_host_of_a_tpu_slice(environment, hosts, monkeypatch):
  launched(monkeypatch, environment)
  config = types.SimpleNamespace(jax_platforms="")
  monkeypatch.setattr(cli, "jax", types.SimpleNamespace(config=config))
  if hosts == 1:
    cli.require_one_process("this")
    return
  with pytest.raises(UserError, match=rf"of all {hosts} hosts .* JAX_PLATFORMS=cpu this …"):
    cli.require_one_process("this")
  cli.require_one_process("this", devices=False)
  config.jax_platforms = "cpu"
  cli.require_one_process("this")


class Metadata(http.server.BaseHTTPRequestHandler):
  """What a Cloud TPU machine is told of its slice, of the hosts `workers`."""

  workers = ""

  def do_GET(self) -> None:
    found = {"agent-worker-number": "0", "worker-network-endpoints": self.workers, "tpu-env": ""}
    self.send_response(200)
    self.end_headers()
    self.wfile.write(found[self.path.rpartition("/")[2]].encode())

  def log_message(self, *_) -> None:
    pass


@pytest.mark.parametrize(("workers", "hosts"), [("a", 1), ("a,b,c,d", 4)])
def test_a_cloud_tpu_machine_asks_its_metadata_server(workers, hosts, monkeypatch):
  from jax._src.clusters import cloud_tpu_cluster

  with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    launched(monkeypatch, {"GCE_METADATA_IP": address, "NO_PROXY": "127.0.0.1"})
    monkeypatch.setattr(Metadata, "workers", workers)
    monkeypatch.setattr(cli, "_on_tpu", lambda: True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    try:
      assert cli._tpu_hosts() == hosts
    finally:
      server.shutdown()
