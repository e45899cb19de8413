"""Text from a model: requests, the decoding loops, sampling, caches."""
