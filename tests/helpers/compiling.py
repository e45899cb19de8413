"""How tests compile. Most of them are short, and compiling is what they take time for."""

# XLA's flags, of the tests' own process (`conftest.py`) and of those that they start. Without the
# fusion emitters a training step compiles in less than half of the time.
QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false"
)

# Options of `jax.jit` where rounding is what is measured: as the programs are compiled in use.
AS_IN_USE = {
  "xla_backend_optimization_level": 3,
  "xla_llvm_disable_expensive_passes": False,
  "xla_cpu_use_fusion_emitters": True,
}


def on_devices(count: int) -> dict[str, str]:
  """Of the environment of a process: it has so many devices of the CPU."""
  flags = f"{QUICKLY} --xla_force_host_platform_device_count={count}"
  return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
