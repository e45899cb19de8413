"""What the server has done, in Prometheus' form."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from gptneo_jax.serve.batching import Generator

_PREFIX = "gptneo_jax"


class Metrics:
  """Counters of one server; on Linux also what its process takes: memory, time, open files."""

  media_type = prometheus_client.CONTENT_TYPE_LATEST

  def __init__(self, generator: Generator):
    self._registry = registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    self._requests = Counter(
      f"{_PREFIX}_requests", "Requests that have been answered.", ["path", "status"],
      registry=registry,
    )  # fmt: skip
    self._seconds = Histogram(
      f"{_PREFIX}_request_seconds", "Time to an answer; of a stream, to its first token.", ["path"],
      registry=registry, buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    )  # fmt: skip
    self._tokens = Counter(
      f"{_PREFIX}_tokens", "Of prompts; of these, reused from before; and new ones.", ["kind"],
      registry=registry,
    )  # fmt: skip
    rows = Gauge(f"{_PREFIX}_rows", "Continuations that are made or wait.", registry=registry)
    rows.set_function(lambda: generator.rows)

  def answered(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
    """scope: of ASGI."""
    path = getattr(scope.get("route"), "path", "other")  # not what a client makes up
    self._requests.labels(path, str(status)).inc()
    self._seconds.labels(path).observe(seconds)

  def tokens(self, usage: dict[str, Any]) -> None:
    self._tokens.labels("prompt").inc(usage["prompt_tokens"])
    self._tokens.labels("reused").inc(usage["prompt_tokens_details"]["cached_tokens"])
    self._tokens.labels("new").inc(usage["completion_tokens"])

  def text(self) -> bytes:
    return prometheus_client.generate_latest(self._registry)
