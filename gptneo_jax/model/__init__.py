"""The decoder and what is computed around it: heads, losses, matrix products."""
