"""A language model as lm-evaluation-harness calls it.

Importing this module imports the harness, which comes with the extra `eval`; it needs no PyTorch.
Tokens, windows and stop strings are those of the harness' own class for PyTorch models
(lm_eval.models.huggingface.HFLM, 0.4.13), so results agree.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gptneo_jax import data, engine
from gptneo_jax.cli import progress_bar
from gptneo_jax.data import DocumentEncoder
from gptneo_jax.errors import Stopped, UserError
from gptneo_jax.evals.scoring import Scorer, ScoringRequest
from gptneo_jax.generation.requests import require_tokenizer

_NEW_TOKENS = 256  # the harness' default
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first wins
_SAMPLING = {
  "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
}  # fmt: skip

# (context, continuation) as texts, which is the key in the harness' cache, or None for no entry;
# context ids; continuation ids.
_TokenRequest = tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]


class LmEvalModel(TemplateLM):
  """A language model for `lm_eval.evaluator`. Raises UserError if it has no tokenizer or LM head.

  batch_size: rows at once; log-likelihoods round it up to what the mesh divides.
  seed: of sampling, in harness tasks that sample.
  stop: asked between batches; once it returns True, Stopped is raised.
  """

  def __init__(
    self,
    lm: engine.LanguageModel,
    batch_size: int = 8,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
  ):
    super().__init__()
    if not lm.config.has_lm_head:
      raise UserError(
        f"harness tasks need next-token logits, and the model's head is {lm.config.head!r}"
      )
    self.tokenizer: Any = require_tokenizer(lm, "evaluate harness tasks")
    data.check_vocabulary(self.tokenizer, lm.config.vocab_size)
    self._lm, self._batch_size, self._seed, self._stop = lm, batch_size, seed, stop
    # The ids at which `generate` ends a text, and the end of text, at which the harness cuts it.
    ends = np.append(lm.generation_config.get("eos_token_id", []), self.eot_token_id).astype(int)
    self._end_ids = [i for i in ends.tolist() if 0 <= i < lm.config.vocab_size]
    self._scorer = Scorer(lm, batch_size)

  # --- the tokenizer ------------------------------------------------------------------------------

  @property
  def eot_token_id(self) -> int:
    return data.end_of_text_id(self.tokenizer)

  @property
  def max_length(self) -> int:
    return self._lm.config.max_position_embeddings

  @property
  def tokenizer_name(self) -> str:
    """A key of the harness' cache of prompts: equal only for equal vocabularies."""
    return f"gptneo_jax-{DocumentEncoder(self.tokenizer).fingerprint()}"

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
    """Ids of a text. Special tokens that it spells out become their ids; none are added."""
    return self.tokenizer.encode(string, add_special_tokens=False, verbose=False)

  @property
  def compiled_shapes(self) -> int:
    """Number of shapes that scoring has compiled so far."""
    return len(self._scorer.shapes)

  # --- log-likelihoods ----------------------------------------------------------------------------

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether it is the greedy continuation) of each continuation after
    its context."""
    texts = [request.args for request in requests]
    encoded = [((context, text), *self._encode_pair(context, text)) for context, text in texts]
    return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

  def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As the harness encodes them, and also texts on which its own function fails.

    An empty context becomes the end of text, or the continuation's first token if it is that. Where
    a token spans the boundary and leaves nothing of the continuation, the two are encoded
    separately.
    """
    if context:
      context_ids, ids = super()._encode_pair(context, continuation)
      if not ids:
        ids = self.tok_encode(continuation)
    else:
      context_ids, ids = [], self.tok_encode(continuation)
    if not context_ids and ids[:1] == [self.prefix_token_id]:
      return ids[:1], ids[1:]
    return context_ids or [self.prefix_token_id], ids

  def _loglikelihood_tokens(
    self, requests: Sequence[_TokenRequest], disable_tqdm: bool = False, **kwargs
  ) -> list[tuple[float, bool]]:
    """In the order of the requests; see `loglikelihood`."""
    results: list[Any] = [None] * len(requests)
    for i, result in self._scores(requests, "log-likelihoods", disable_tqdm):
      results[i] = result
      key = requests[i][0]
      if key is not None:
        self.cache_hook.add_partial("loglikelihood", key, result)
    return results

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihood of each text in nats, in disjoint windows.

    The first window begins with the end of text; the last has as much context as fits. Sums are
    float64.
    """
    windows: list[_TokenRequest] = []
    request_of_window, left = [], []
    for number, request in enumerate(requests):
      pairs = get_rolling_token_windows(
        self.tok_encode(*request.args), self.prefix_token_id, self.max_length, context_len=1
      )
      own = [(None, *make_disjoint_window(pair)) for pair in pairs]
      windows += own
      request_of_window += [number] * len(own)
      left.append(len(own))
    totals = [0.0] * len(requests)
    for i, (logprob, _) in self._scores(windows, "windows", disable_tqdm):
      number = request_of_window[i]
      totals[number] += logprob
      left[number] -= 1
      if not left[number]:
        request = requests[number]
        self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[number])
    return totals

  def _scores(
    self, requests: Sequence[_TokenRequest], description: str, quiet: bool
  ) -> Iterator[tuple[int, tuple[float, bool]]]:
    """(index, (log-probability, all greedy)) of each request, in the order of computation."""
    scored = []
    for _, context, targets in requests:
      if len(targets) > self.max_length:
        raise UserError(
          f"a harness task asks for the likelihood of {len(targets)} tokens at once, and the model"
          f" has {self.max_length} positions; evaluate it with loglikelihood_rolling"
        )
      ids = (*context, *targets)[-(self.max_length + 1) :]
      scored.append(ScoringRequest(ids[:-1], tuple(targets)))
    with progress_bar(total=len(requests), desc=description, disable=quiet) as bar:
      for i, request in enumerate(scored):
        if not request.targets:  # the empty text has probability 1
          bar.update()
          yield i, (0.0, True)
      for i, (logprob_N, greedy_N) in self._scorer.score(scored):
        self._stop_if_asked()
        bar.update()
        logprob = float(logprob_N.sum(dtype=np.float64))
        if not math.isfinite(logprob):
          raise UserError(f"a log-likelihood is {logprob}; try the model with --dtype float32")
        yield i, (logprob, bool(greedy_N.all()))

  def _stop_if_asked(self) -> None:
    if self._stop():
      raise Stopped

  # --- generation ---------------------------------------------------------------------------------

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """Continuations up to the first stop string, which is cut off.

    Contexts are truncated on the left so that they and the new tokens fit the model.
    """
    texts: list[Any] = [None] * len(requests)
    contexts = [self.tok_encode(request.args[0]) for request in requests]
    # A batch shares its options, and its rows have similar lengths. Repetitions of a request go to
    # groups of their own, each with another seed.
    repeats: collections.Counter[tuple[str, str]] = collections.Counter()
    groups: dict[tuple[str, int], list[int]] = {}
    for i in sorted(range(len(requests)), key=lambda i: -len(contexts[i])):
      text, settings = requests[i].args
      key = text, json.dumps(settings, sort_keys=True)
      groups.setdefault((key[1], repeats[key]), []).append(i)
      repeats[key] += 1
    with progress_bar(total=len(requests), desc="generation", disable=disable_tqdm) as bar:
      for (settings, repeat), group in groups.items():
        until, new_tokens, options = self._options(json.loads(settings))
        for start in range(0, len(group), self._batch_size):
          self._stop_if_asked()
          batch = group[start : start + self._batch_size]
          rows = [
            contexts[i][-(self.max_length - new_tokens) :] or [self.prefix_token_id] for i in batch
          ]
          seeded = {**options, "seed": self._seed + repeat}
          for i, text in zip(batch, self._continuations(rows, until, new_tokens, seeded)):
            texts[i] = text
            self.cache_hook.add_partial("generate_until", requests[i].args, text)
            bar.update()
    return texts

  def _options(self, settings: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop strings, number of new tokens, and other options for `generate`.

    Decoding is greedy at temperature 0 and with do_sample false, whatever other sampling options
    are given; a temperature above 0 alone switches sampling on.
    """
    until = settings.pop("until", None) or []
    until = [until] if isinstance(until, str) else [stop for stop in until if stop]
    lengths = [settings.pop(name, None) for name in _LENGTHS]
    new_tokens = next((int(n) for n in lengths if n is not None), _NEW_TOKENS)
    if new_tokens >= self.max_length:
      raise UserError(
        f"a harness task asks for {new_tokens} new tokens, and the model has {self.max_length}"
        " positions"
      )
    do_sample = settings.pop("do_sample", None)
    temperature = settings.get("temperature")
    sample = do_sample is not False and (temperature or 0) > 0
    sample |= do_sample is True and temperature is None
    if not sample:
      rest = {k: v for k, v in settings.items() if k not in _SAMPLING}
      return until, new_tokens, {**rest, "do_sample": False}
    return until, new_tokens, {**settings, "do_sample": True}

  def _continuations(
    self, rows: list[list[int]], until: list[str], new_tokens: int, options: dict[str, Any]
  ) -> list[str]:
    """The new text of each prompt of a batch."""
    texts = []
    for row, ids in zip(rows, self._generated(rows, until, new_tokens, options)):
      # `generate` also ends a row at a stop string that began in the prompt, but only one that lies
      # within the new text counts here: such a row is continued.
      while len(ids) < new_tokens and ids[-1] not in self._end_ids:
        decoded = self.tokenizer.decode(ids)  # with special tokens: a stop string may be one
        if any(stop in decoded for stop in until):
          break
        ids += self._generated([row + ids], until, new_tokens - len(ids), options)[0]
      text = self.tokenizer.decode(ids, skip_special_tokens=True)
      for stop in [*until, self.tokenizer.decode([self.eot_token_id])]:
        text = text.split(stop)[0]
      texts.append(text)
    return texts

  def _generated(
    self, rows: list[list[int]], until: list[str], new_tokens: int, options: dict[str, Any]
  ) -> list[list[int]]:
    """The new ids of each prompt of a batch."""
    generated = self._lm.generate(
      rows,
      max_new_tokens=new_tokens,
      stop_strings=until or None,
      eos_token_id=self._end_ids,
      num_return_sequences=1,  # overrides the model's generation_config.json
      **options,
    )
    assert generated.lengths is not None
    width = max(map(len, rows))
    return [
      ids[width : width + n].tolist() for ids, n in zip(generated.sequences, generated.lengths)
    ]
