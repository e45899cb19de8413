"""Which attention backend serves what: `auto`'s choice, errors with reasons, and the log."""

import jax
import pytest

from gptneo_jax import attention
from gptneo_jax.attention import AttentionRequest, MaskSpec, attend
from gptneo_jax.hardware import Hardware, current_hardware
from tests.helpers.attention_truth import dense_attention, make_inputs, relative_error

T4, A100, H100 = (Hardware("gpu", capability) for capability in ((7, 5), (8, 0), (9, 0)))
TPU = Hardware("tpu")
NEO = AttentionRequest(length=2048, head_dim=128, dtype="bfloat16")


@pytest.mark.parametrize(
  "hardware, changes, expected",
  [
    (Hardware("cpu"), {}, "blocked"),
    (Hardware("cpu"), {"window": 256}, "blocked"),
    (Hardware("cpu"), {"length": 129}, "blocked"),
    (Hardware("cpu"), {"length": 128}, "reference"),
    (TPU, {}, "splash"),
    (TPU, {"window": 256, "segments": True}, "splash"),
    (TPU, {"window": 256, "dtype": "float32", "head_dim": 17}, "splash"),
    (TPU, {"window": 256, "dropout": True}, "blocked"),
    (TPU, {"dtype": "float16"}, "blocked"),
    (A100, {}, "cudnn"),
    (A100, {"window": 256, "dtype": "float16"}, "cudnn"),
    (A100, {"window": 256, "dtype": "float32"}, "blocked"),
    (A100, {"window": 256, "dropout": True}, "blocked"),
    (A100, {"head_dim": 256}, "blocked"),
    (H100, {"head_dim": 256}, "cudnn"),
    (H100, {"head_dim": 100}, "blocked"),
    (H100, {"window": 256, "segments": True}, "cudnn"),
    (A100, {"window": 256, "segments": True}, "blocked"),
    (T4, {"window": 256, "dtype": "float16"}, "blocked"),
    (T4, {"dtype": "float16"}, "blocked"),
    (Hardware("gpu"), {}, "blocked"),  # not NVIDIA's
  ],
)
def test_auto(hardware, changes, expected):
  request = NEO._replace(hardware=hardware, **changes)
  assert attention.resolve("auto", request) == expected
  if expected not in ("splash", "cudnn"):
    assert attention.resolve("xla", request) == expected
  assert attention.resolve(expected, request) == expected


@pytest.mark.parametrize(
  "impl, hardware, changes, message",
  [
    ("splash", A100, {}, "runs on TPU, and this is gpu"),
    ("splash", TPU, {"dropout": True}, "cannot drop attention probabilities"),
    ("splash", TPU, {"dtype": "float16"}, "float32 and bfloat16, not float16"),
    ("cudnn", Hardware("cpu"), {}, "NVIDIA GPUs, and this is cpu"),
    ("cudnn", Hardware("gpu"), {}, "NVIDIA card of compute capability 8.0 or more"),
    ("cudnn", T4, {"dtype": "float16"}, "8.0 or more, and this card has 7.5"),
    ("cudnn", H100, {"dtype": "float32"}, "bfloat16 and float16, not float32"),
    ("cudnn", H100, {"dropout": True}, "cannot drop attention probabilities"),
    ("cudnn", H100, {"head_dim": 100}, "8 divides, up to 256, and this one is 100"),
    ("cudnn", A100, {"head_dim": 136}, "8 divides, up to 128, and this one is 136"),
    ("cudnn", A100, {"segments": True}, "segments and padding.* 9.0 or more.* has 8.0"),
  ],
)
def test_a_backend_that_cannot_serve_says_why(impl, hardware, changes, message):
  request = NEO._replace(hardware=hardware, **changes)
  with pytest.raises(
    ValueError, match=f"attention backend '{impl}' cannot serve here: .*{message}"
  ):
    attention.resolve(impl, request)


def test_mistakes_of_the_caller():
  with pytest.raises(ValueError, match=r"unknown attention backend 'flash'.*auto, xla, reference"):
    attention.resolve("flash", NEO)
  q, k, v, _ = make_inputs(4)
  with pytest.raises(ValueError, match="differ in shape"):
    attend(q, k[:, :3], v, MaskSpec(2), scale=1.0)
  with pytest.raises(ValueError, match="'splash' cannot serve here: it runs on TPU"):
    attend(q, k, v, MaskSpec(2), scale=1.0, impl="splash")
  with pytest.raises(ValueError, match="window is 0"):
    MaskSpec(0)


def test_the_choice_of_auto_is_logged_once(caplog):
  attention.api._say_once.cache_clear()
  with caplog.at_level("INFO", logger="gptneo_jax.attention"):
    for _ in range(3):
      attention.resolve("auto", NEO._replace(hardware=T4, window=256, dtype="float16"))
      attention.resolve("auto", NEO._replace(hardware=TPU))
      attention.resolve("auto", NEO._replace(length=1))
  assert [record.getMessage() for record in caplog.records] == [
    "attention (window 256, float16, gpu of compute capability 7.5): blocked; cudnn: it needs"
    " compute capability 8.0 or more, and this card has 7.5",
    "attention (all keys before, bfloat16, tpu): splash",
  ]


def test_the_mesh_in_use_says_what_is_compiled_for():
  """A TPU that is only described is enough to choose its kernel."""
  assert current_hardware().platform == jax.devices()[0].platform
  device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert current_hardware() == TPU


def test_attend_takes_the_backend_it_is_told():
  q, k, v, dout = make_inputs(12)
  expected = dense_attention(q, k, v, 4, None, 1.0, dout)[0]
  for impl in ("auto", "xla", "reference", "blocked"):
    out = attend(q, k, v, MaskSpec(4), scale=1.0, impl=impl)
    assert relative_error(out, expected) < 1e-5
