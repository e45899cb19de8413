"""Other meshes, several processes, and processes that are killed (manager.py)."""

import random
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptneo_jax.checkpoints import manager
from gptneo_jax.checkpoints.reading import restore_params
from gptneo_jax.checkpoints.step_folders import latest_step, saved_steps
from tests.helpers import compiling
from tests.helpers.checkpoint_runs import run_python, save


@pytest.mark.processes
def test_another_mesh_restores_it(tmp_path):
  code = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from gptneo_jax.checkpoints import manager

    def sharded(shape, names, *spec):
      mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
      return NamedSharding(mesh, P(*spec))

    def abstract(sharding):
      return {"w": jax.ShapeDtypeStruct((16, 8), np.float32, sharding=sharding)}

    w = np.arange(128, dtype=np.float32).reshape(16, 8)
    written = {"w": jax.device_put(w, sharded((8,), ("fsdp",), "fsdp"))}
    checkpointer = manager.Checkpointer(sys.argv[1])
    checkpointer.save(1, params=written, optimizer=written, data_state={})
    other = sharded((2, 4), ("data", "tensor"), None, "tensor")
    restored = checkpointer.restore(abstract(other), abstract(other))
    checkpointer.close()
    for tree in (restored.params, restored.optimizer):
      assert tree["w"].sharding == other
      np.testing.assert_array_equal(tree["w"], w)
  """
  process = run_python(code, tmp_path, **compiling.on_devices(8))
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert errors == ""  # orbax says nothing on the terminal either
  abstract = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32)}  # and on this one device
  w = np.arange(128, dtype=np.float32).reshape(16, 8)
  np.testing.assert_array_equal(restore_params(tmp_path, abstract)["w"], w)


@pytest.mark.processes
def test_two_processes_agree_on_damage(tmp_path):
  """One of two processes finds its half of the newest checkpoint cut off: both fall back."""
  code = """
    import os, pathlib, sys
    import jax, numpy as np
    folder, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from gptneo_jax.checkpoints import manager

    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("fsdp"))
    w = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    tree = {"w": jax.make_array_from_callback(w.shape, sharding, lambda i: w[i])}
    checkpointer = manager.Checkpointer(folder)
    for step in (1, 2):
      checkpointer.save(step, params=tree, optimizer=tree, data_state={})
    checkpointer.wait()
    multihost_utils.sync_global_devices("saved")
    if index == 0:
      (half,) = [p for p in folder.glob("2/params/ocdbt.process_1/d/*") if p.stat().st_size > 1e5]
      os.truncate(half, half.stat().st_size // 2)
    multihost_utils.sync_global_devices("damaged")
    abstract = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)}
    restored = checkpointer.restore(abstract, abstract)
    assert restored.step == 1, restored.step
    for shard in restored.params["w"].addressable_shards:
      np.testing.assert_array_equal(shard.data, w[shard.index])
    checkpointer.close()
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [run_python(code, tmp_path, port, index) for index in range(2)]
  try:
    for process in processes:
      _, errors = process.communicate(timeout=60)
      assert process.returncode == 0, errors
  finally:
    for process in processes:
      process.kill()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.damaged"]


@pytest.mark.processes
def test_killed_while_saving(tmp_path):
  """SIGKILL at random moments of a loop that only saves; the next process resumes."""
  code = """
    import sys
    import jax, jax.numpy as jnp
    from gptneo_jax.checkpoints import manager

    checkpointer = manager.Checkpointer(sys.argv[1], keep_latest=2)
    abstract = jax.eval_shape(lambda: {"w": jnp.zeros((1024, 1024)), "step": jnp.int32(0)})
    restored = checkpointer.restore(abstract, abstract)
    step = restored.step if restored else 0
    if restored:
      for tree in (restored.params, restored.optimizer):
        assert tree["step"] == step and bool((tree["w"] == step).all()), tree
      assert restored.data_state == {"step": step}
    print(step, flush=True)
    while True:
      step += 1
      tree = {"w": jnp.full((1024, 1024), step, jnp.float32), "step": jnp.int32(step)}
      checkpointer.save(step, params=tree, optimizer=tree, data_state={"step": step})
  """
  chance, reached = random.Random(0), 0
  for _ in range(3):
    process = run_python(code, tmp_path)
    started_at = process.stdout.readline()
    if not started_at:
      pytest.fail(process.communicate()[1])
    assert int(started_at) >= reached
    time.sleep(0.3 + chance.random())
    process.kill()
    process.communicate()
    reached = latest_step(tmp_path) or 0
  assert reached > 0
  checkpointer = manager.Checkpointer(tmp_path)
  assert save(checkpointer, reached + 1)
  checkpointer.close()
  assert {p.name for p in tmp_path.iterdir()} == set(map(str, saved_steps(tmp_path)))
