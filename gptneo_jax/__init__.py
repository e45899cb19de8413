"""JAX/Flax home of GPT-Neo."""
