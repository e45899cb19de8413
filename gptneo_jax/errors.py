"""The error that programs print as one line, and suggestions for misspelt names."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

_CLOSE = 0.75  # of difflib's ratio: below it a name is another one, not a misspelling

# Other projects' names of our settings that spelling alone does not lead to; without underscores.
_ALIASES = {
  "batch": "batch_size",
  "beta1": "b1",
  "beta2": "b2",
  "blocksize": "seq_len",
  "bs": "batch_size",
  "dmodel": "hidden_size",
  "evalinterval": "eval_every",
  "gradclip": "clip_norm",
  "gradientaccumulationsteps": "grad_accumulation",
  "loggingsteps": "log_every",
  "lr": "learning_rate",
  "maxgradnorm": "clip_norm",
  "maxiters": "steps",
  "maxlength": "seq_len",
  "nctx": "max_position_embeddings",
  "nembd": "hidden_size",
  "outputdir": "workdir",
  "perdevicetrainbatchsize": "batch_size",
  "quantise": "quantization",
  "quantize": "quantization",
  "savesteps": "checkpoint_every",
  "sequencelength": "seq_len",
  "trainsteps": "steps",
  "warmup": "warmup_steps",
  "wd": "weight_decay",
}


class UserError(Exception):
  """Bad input: the message names the cause, the file and line if there is one, and what to do."""


class Stopped(Exception):
  """The run was asked to stop; what was measured so far is dropped."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns ValueError, which checks of values raise, into UserError: the values are a user's."""
  try:
    yield
  except ValueError as error:
    raise UserError(str(error)) from None


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or the name of its type where it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_of_memory(error: Exception) -> str:
  """XLA's message in one line if it says that memory ran out, else ''."""
  if not re.search("RESOURCE_EXHAUSTED|out of memory|failed to allocate", str(error), re.I):
    return ""
  return first_line(error).removeprefix("RESOURCE_EXHAUSTED: ")[:200].rstrip(".")


def did_you_mean(name: str, valid: Iterable[str], form: str = "{}") -> str:
  """'; did you mean NAME?' with the nearest of the valid names, or '' if none is near.

  The last parts of dotted names are compared; names of the same section are preferred, then those
  without a section.
  form: how the name is written, such as '--config.{}'.
  """
  section, leaf = _parts(name)
  ordered = sorted(valid, key=lambda one: (_parts(one)[0] != section, one.count(".")))
  leaves = [_parts(one)[1] for one in ordered]
  for meant in filter(None, (_parts(_ALIASES.get(leaf, ""))[1], leaf)):
    if near := difflib.get_close_matches(meant, leaves, n=1, cutoff=_CLOSE):
      return f"; did you mean {form.format(ordered[leaves.index(near[0])])}?"
  return ""


def _parts(name: str) -> tuple[str, str]:
  """The section, and the last part in lower case without _ and -."""
  section, _, leaf = name.rpartition(".")
  return section, leaf.lower().replace("_", "").replace("-", "")
