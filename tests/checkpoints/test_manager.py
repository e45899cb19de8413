"""Checkpoints: exact, whole or not there, and clear about what went wrong."""

import contextlib
import json
import logging
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptneo_jax.checkpoints import manager
from gptneo_jax.checkpoints.reading import params_metadata, restore_params


def _state(seed=0):
  """A small training state with every kind of leaf: float32, bfloat16, int, scalar, key data."""
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "wte": jax.random.normal(keys[0], (16, 8)),
    "blocks": {"layer_0": {"kernel": jax.random.normal(keys[1], (2, 8, 4), jnp.bfloat16)}},
  }
  optimizer = {
    "state": optax.adam(lambda step: 0.1 * step).init(params),
    "step": jnp.int32(seed),
    "key": jax.random.key_data(keys[2]),
  }
  return params, optimizer


def _abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _save(checkpointer, step, metrics=None):
  params, optimizer = _state(step)
  data_state = {"position": step, "streams": [1, 2]}
  return checkpointer.save(
    step, params=params, optimizer=optimizer, data_state=data_state, metrics=metrics
  )


def _restore(folder):
  checkpointer = manager.Checkpointer(folder)
  try:
    return checkpointer.restore(*map(_abstract, _state()))
  finally:
    checkpointer.close()


def _assert_is_step(restored, step):
  params, optimizer = _state(step)
  assert restored.step == step
  assert restored.data_state == {"position": step, "streams": [1, 2]}
  for actual, expected in ((restored.params, params), (restored.optimizer, optimizer)):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
      assert (a.dtype, a.shape) == (b.dtype, b.shape)
      assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
  """A folder with checkpoints 1 and 2; copy it before doing damage."""
  folder = tmp_path_factory.mktemp("checkpoints")
  checkpointer = manager.Checkpointer(folder)
  assert all(_save(checkpointer, step, {"eval/loss": float(step)}) for step in (1, 2))
  checkpointer.close()
  return folder


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip_is_bitwise(tmp_path, asynchronous):
  checkpointer = manager.Checkpointer(tmp_path, asynchronous=asynchronous)
  assert checkpointer.restore(*map(_abstract, _state())) is None
  assert _save(checkpointer, 7)
  assert not _save(checkpointer, 7)  # stands already
  _assert_is_step(checkpointer.restore(*map(_abstract, _state())), 7)
  checkpointer.close()
  _assert_is_step(_restore(tmp_path), 7)
  assert (tmp_path / "7" / "params").is_dir()


def test_reading_without_a_checkpointer(two_steps, tmp_path):
  params, _ = _state(2)
  assert manager.saved_steps(two_steps) == [1, 2]
  assert manager.latest_step(two_steps) == 2
  assert manager.latest_step(tmp_path / "absent") is None
  shapes = params_metadata(two_steps, 1)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
    lambda x: (x.shape, x.dtype), params
  )
  # The type asked for, and no sharding: that of the machine that wrote must not matter.
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
  restored = restore_params(two_steps, abstract)
  np.testing.assert_array_equal(restored["wte"], params["wte"])
  assert restored["blocks"]["layer_0"]["kernel"].dtype == jnp.float32
  older = restore_params(two_steps, abstract, step=1)
  np.testing.assert_array_equal(older["wte"], _state(1)[0]["wte"])
  with pytest.raises(manager.CheckpointError, match=r"no checkpoint 9 in .*\[1, 2\]"):
    restore_params(two_steps, abstract, step=9)
  with pytest.raises(manager.CheckpointError, match="no checkpoint in"):
    restore_params(tmp_path, abstract)


def test_keeps_the_latest_and_the_best(tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: None, 4: float("nan"), 5: 2.0, 6: 4.0}
  for steps in ((1, 2, 3), (4, 5, 6)):  # the second process reads the losses of the first
    checkpointer = manager.Checkpointer(tmp_path, keep_latest=2, keep_best=1)
    for step in steps:
      loss = losses[step]
      _save(checkpointer, step, None if loss is None else {"eval/loss": loss})
    checkpointer.close()
  assert manager.saved_steps(tmp_path) == [2, 5, 6]
  (tmp_path / "2" / "metrics" / "metrics").write_text('{"eval/lo')  # then it is not the best
  checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, keep_best=1)
  _save(checkpointer, 7)
  checkpointer.close()
  assert manager.saved_steps(tmp_path) == [5, 7]


@pytest.mark.parametrize("metrics", [None, {"train/loss": 9.0}])
def test_metrics_measured_after_the_save_rank_it(metrics, tmp_path):
  """As an evaluation does, in this process or in one that owed it."""
  losses = {1: 3.0, 2: 1.0, 3: 2.0}
  for steps in ((1, 2), (3, 4, 5)):
    checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, keep_best=1)
    for step in steps:
      _save(checkpointer, step, metrics)
      if step in losses:
        checkpointer.add_metrics(step, {"eval/loss": losses[step]})
    checkpointer.close()
  assert manager.saved_steps(tmp_path) == [2, 5]
  stored = json.loads((tmp_path / "2" / "metrics" / "metrics").read_text())
  assert stored == {**(metrics or {}), "eval/loss": 1.0}
  restored = _restore(tmp_path)
  _assert_is_step(restored, 5)
  assert restored.metrics == (metrics or {})


def test_an_asynchronous_save_survives_donation(tmp_path):
  """The next step donates the arrays while they are being written."""

  @jax.jit
  def make(seed):
    return {f"w{i}": jax.random.normal(jax.random.key(seed + i), (1024, 1024)) for i in range(24)}

  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
  overwrite(make(1))  # compiles
  checkpointer = manager.Checkpointer(tmp_path)
  for step in range(1, 11):  # a save that is over before the step, on a busy machine, shows nothing
    params = jax.block_until_ready(make(step))  # 96 MiB
    expected = {name: np.array(x, copy=True) for name, x in params.items()}
    checkpointer.save(step, params=params, optimizer={"step": np.int32(step)}, data_state={})
    params = jax.block_until_ready(overwrite(params))
    if not (tmp_path / str(step)).exists():
      break
  else:
    pytest.fail("each of ten saves was over before the step")
  params = jax.block_until_ready(overwrite(overwrite(params)))
  checkpointer.close()
  restored = restore_params(tmp_path, _abstract(params), step)
  for name, array in expected.items():
    np.testing.assert_array_equal(restored[name], array)


def _files(step_folder):
  """All files but the marks of success, which say nothing on a local disk, and the optimizer's,
  which are like those of the parameters."""
  files = [str(p.relative_to(step_folder)) for p in step_folder.rglob("*") if p.is_file()]
  return sorted(f for f in files if "commit_success" not in f and not f.startswith("optimizer"))


def test_a_damaged_checkpoint_is_moved_aside(two_steps, tmp_path, caplog):
  """Each file of the newest checkpoint in turn cut in half or gone: 2 whole, or 1 instead."""
  fell_back = 0
  for name in _files(two_steps / "2"):
    for cut in (True, False):
      folder = tmp_path / f"{cut}-{name.replace('/', '-')}"
      shutil.copytree(two_steps, folder)
      target = folder / "2" / name
      if cut:
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
      else:
        target.unlink()
      caplog.clear()
      restored = _restore(folder)
      _assert_is_step(restored, restored.step)
      if restored.step == 1:
        fell_back += 1
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "checkpoint 2 is damaged" in record.getMessage()
        assert (folder / "2.damaged").is_dir() and not (folder / "2").exists()
        assert manager.saved_steps(folder) == [1]
      else:
        assert manager.saved_steps(folder) == [1, 2]
      shutil.rmtree(folder)
  assert fell_back >= 8


def test_damaged_everywhere(two_steps, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two_steps, folder)
  for step in (1, 2):
    shutil.rmtree(folder / str(step) / "optimizer")
  (folder / "2.damaged").mkdir()  # from an earlier time; must not be overwritten
  with pytest.raises(manager.CheckpointError, match="none of the 2 checkpoints"):
    _restore(folder)
  assert (folder / "2.damaged.1" / "params").is_dir() and (folder / "1.damaged").is_dir()
  assert _restore(folder) is None


def test_a_step_moved_aside_can_be_saved_again(two_steps, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two_steps, folder)
  shutil.rmtree(folder / "2" / "optimizer")
  (folder / "1" / "metrics" / "metrics").write_text('{"eval/lo')  # only costs 1 its rank
  checkpointer = manager.Checkpointer(folder)
  assert checkpointer.restore(*map(_abstract, _state())).step == 1
  assert _save(checkpointer, 2, {"eval/loss": 2.0})
  checkpointer.close()
  _assert_is_step(_restore(folder), 2)


def test_another_model_is_an_error_and_moves_nothing(two_steps):
  params, optimizer = _state()
  wider = params | {"wte": jnp.zeros((16, 9))}
  deeper = params | {"extra": jnp.zeros(3)}
  other_type = params | {"wte": jnp.zeros((16, 8), jnp.bfloat16)}
  fewer = {"blocks": params["blocks"]}
  other_optimizer = optimizer | {"state": optax.sgd(0.1, momentum=0.9).init(params)}
  before = sorted(two_steps.rglob("*"))
  checkpointer = manager.Checkpointer(two_steps)
  for p, o, message in (
    (wider, optimizer, r"params/wte is \(16, 8\) float32 there, \(16, 9\) float32 here"),
    (deeper, optimizer, r"params/extra is absent there, \(3,\) float32 here"),
    (other_type, optimizer, r"params/wte is \(16, 8\) float32 there, \(16, 8\) bfloat16 here"),
    (fewer, optimizer, r"params/wte is \(16, 8\) float32 there, absent here"),
    (params, other_optimizer, r"optimizer/state/0/trace/.* is absent there"),
  ):
    with pytest.raises(manager.CheckpointError, match=message):
      checkpointer.restore(_abstract(p), _abstract(o))
  with pytest.raises(manager.CheckpointError, match=r"params/wte is \(16, 8\) there, \(16, 9\)"):
    restore_params(two_steps, _abstract(wider))
  checkpointer.close()
  assert sorted(two_steps.rglob("*")) == before


def test_padding_of_the_tables_may_differ(tmp_path):
  """Rows past the vocabulary are cut or filled with zeros, those of the moments with them."""
  rule = optax.adam(0.1)
  params = {"wte": jnp.arange(1.0, 41).reshape(10, 4), "kernel": jnp.ones((10, 4))}
  state = jax.tree.map(lambda x: x + 1, rule.init(params))
  checkpointer = manager.Checkpointer(tmp_path)
  checkpointer.save(1, params=params, optimizer=state, data_state={})
  for rows in (8, 10, 16):
    wanted = params | {"wte": jnp.zeros((rows, 4))}
    restored = checkpointer.restore(_abstract(wanted), _abstract(rule.init(wanted)), vocab_size=8)
    for table, saved in (
      (restored.params["wte"], params["wte"]),
      (restored.optimizer[0].mu["wte"], state[0].mu["wte"]),
      (restored.optimizer[0].nu["wte"], state[0].nu["wte"]),
      (restore_params(tmp_path, _abstract(wanted), vocab_size=8)["wte"], params["wte"]),
    ):
      assert table.shape == (rows, 4)
      np.testing.assert_array_equal(table[:10], saved[:rows])
      assert not table[10:].any()
  for wrong, vocab_size in (
    ({"wte": (16, 4)}, None),
    ({"wte": (7, 4)}, 8),
    ({"kernel": (16, 4)}, 8),
  ):
    other = params | {name: jnp.zeros(shape) for name, shape in wrong.items()}
    with pytest.raises(manager.CheckpointError, match=f"params/{next(iter(wrong))} is"):
      restore_params(tmp_path, _abstract(other), vocab_size=vocab_size)
  checkpointer.close()


@contextlib.contextmanager
def _largest_file(size):
  """Writing past `size` bytes fails, as on a full disk, but with EFBIG."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_one_clear_line(tmp_path, caplog, capfd, asynchronous):
  checkpointer = manager.Checkpointer(tmp_path, keep_latest=1, asynchronous=asynchronous)
  _save(checkpointer, 1)
  checkpointer.wait()
  big = jax.random.normal(jax.random.key(0), (1024, 1024))
  with _largest_file(2**20), pytest.raises(manager.CheckpointError) as caught:
    checkpointer.save(2, params={"w": big}, optimizer={"step": np.int32(1)}, data_state={})
    checkpointer.wait()
  message = str(caught.value)
  assert "checkpoint 2" in message and "File too large; the last good one is 1" in message
  assert "\n" not in message
  assert manager.saved_steps(tmp_path) == [1]
  _save(checkpointer, 3)
  checkpointer.close()
  assert manager.saved_steps(tmp_path) == [3]
  _assert_is_step(_restore(tmp_path), 3)
  assert not caplog.records and capfd.readouterr().err == ""


def _run(code, *arguments, **environment):
  """Starts a Python that runs `code`."""
  root = str(pathlib.Path(manager.__file__).parents[2])
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


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
  process = _run(code, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
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
  processes = [_run(code, tmp_path, port, index) for index in range(2)]
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
  """SIGKILL at random moments of a loop that does nothing but save; then the next goes on."""
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
    process = _run(code, tmp_path)
    started_at = process.stdout.readline()
    if not started_at:
      pytest.fail(process.communicate()[1])
    assert int(started_at) >= reached
    time.sleep(0.3 + chance.random())
    process.kill()
    process.communicate()
    reached = manager.latest_step(tmp_path) or 0
  assert reached > 0
  checkpointer = manager.Checkpointer(tmp_path)
  assert _save(checkpointer, reached + 1)
  checkpointer.close()
  assert {p.name for p in tmp_path.iterdir()} == set(map(str, manager.saved_steps(tmp_path)))
