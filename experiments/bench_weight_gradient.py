"""The MLP's forward and backward pass with products of flattened rows and with jnp.matmul.

  python experiments/bench_weight_gradient.py

GPT-Neo 125M's MLP (768 to 3072 and back) on 8 x 256 tokens, in one run, alternating. For 2-D
operands XLA on CPU takes the weight gradient as x^T·dy; for those of B x T x D that jnp.matmul is
given, it copies dy transposed first, and then takes its slower product.
"""

import bench
import jax
import jax.numpy as jnp

from gptneo_jax.model.matmul import matmul


def panels(results):
  times = results["seconds"]
  # The ceiling's own product is of another size: drawn is its time for the FLOPs of the others.
  share = results["fraction_of_matmul_ceiling"]["ours"]["median"]
  larger = share * times["ours"]["median"] / times["ceiling"]["median"]
  ceiling = {key: larger * times["ceiling"][key] for key in ("median", "q1", "q3")}
  bars = {"ours": times["ours"], "jnp.matmul": times["jax"], "matmul ceiling": ceiling}
  return [bench.Panel("MLP, forward and backward, the same FLOPs", "seconds", {"": bars})]


def main():
  key = jax.random.key(0)
  x_BxTxD = jax.random.normal(key, (8, 256, 768))
  w_DxF = jax.random.normal(key, (768, 3072)) * 0.02
  w_FxD = jax.random.normal(key, (3072, 768)) * 0.02
  flops = 3 * 4 * x_BxTxD.size * 3072

  def gradient(product):
    def loss(x, w, v):
      return jnp.sin(product(jax.nn.gelu(product(x, w)), v)).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2)))
    return lambda: compiled(x_BxTxD, w_DxF, w_FxD)

  ceiling = bench.matmul_ceiling()
  times = bench.alternate(
    {
      "ours": gradient(matmul),
      "jax": gradient(jnp.matmul),
      "ceiling": ceiling,
    }
  )
  bench.record(
    "bench_weight_gradient",
    {
      "seconds": times,
      "speedup": bench.ratio(times, "jax", "ours"),
      "fraction_of_matmul_ceiling": {
        name: bench.fraction(times, name, flops, ceiling.work) for name in ("ours", "jax")
      },
    },
    panels,
  )


if __name__ == "__main__":
  main()
