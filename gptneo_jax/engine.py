"""A loaded model and its uses: logits, hidden states, scores of texts, continuations.

lm = gptneo_jax.load("EleutherAI/gpt-neo-125m")     # a hub id, a Hugging Face folder, or ours
lm.generate("The dog", max_new_tokens=20).texts
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptneo_jax import data, model_io, steps
from gptneo_jax.axes import round_up
from gptneo_jax.checkpoints.folder import is_checkpoint_folder
from gptneo_jax.config import ModelConfig, dtype_name
from gptneo_jax.data import DocumentEncoder
from gptneo_jax.errors import UserError, did_you_mean
from gptneo_jax.examples import TaskSpec, instruction, task_file
from gptneo_jax.generation import api, model_defaults, prediction, unstacked
from gptneo_jax.generation.api import Generation
from gptneo_jax.generation.requests import require_tokenizer
from gptneo_jax.interop import peft_files
from gptneo_jax.interop.hf_import import GENERATION_CONFIG, HF_CONFIG
from gptneo_jax.model import forward, heads, lora, next_token
from gptneo_jax.model.chunked_cross_entropy import TokenPredictions
from gptneo_jax.model.forward import integers, refuse_traced
from gptneo_jax.model.matmul import exact_products
from gptneo_jax.sharding import batch_ways

_SCORED_ROWS = 8  # windows scored at once


class Score(NamedTuple):
  """How well a text is predicted; bits per byte are nll / (bytes · ln 2)."""

  nll: float  # nats, sum over the tokens
  tokens: int
  bytes: int  # of UTF-8


def load(
  path_or_hub_id: str, dtype: Any = None, mesh: Mesh | None = None, *,
  adapter: str | None = None, quantization: str | None = None, step: int | str | None = None,
  **unknown: Any,
) -> LanguageModel:  # fmt: skip
  """Opens a model: a checkpoint of a folder of ours, a Hugging Face folder, or a hub id.

  Args:
    path_or_hub_id: of a folder of ours the newest checkpoint is taken, of FOLDER/STEP that one.
    dtype: 'float32', 'bfloat16' or 'float16', or such a type of NumPy or JAX, of weights and
      computation; default: as stored. Only on GPUs is float16 computed in: elsewhere its weights
      are used in float32.
    mesh: devices to split it over (`sharding.make_mesh`); default the first one.
    adapter: folder of a LoRA adapter in PEFT's form, which is merged into the weights.
    quantization: 'int8', 'w8a8' or 'int4': weights for inference (generation/quantization.py). A
      folder that holds a quantized model is opened as one without it.
    step: which checkpoint of a folder of ours, a number or 'best' (by the run's best_metric).

  Raises:
    UserError: not there, damaged, not supported, or not divisible over the mesh; in one line.
  """
  for name in unknown:
    hint = did_you_mean(name, ("dtype", "mesh", "adapter", "quantization", "step"))
    raise UserError(f"load: {name} is not supported{hint}")
  mesh = mesh or model_io.first_device()
  dtype = dtype_name(dtype)
  stored = model_io.load_quantized(str(path_or_hub_id), mesh)
  if stored is not None:
    changed = any(given is not None for given in (adapter, dtype, step))
    if changed or quantization not in (None, stored.mode):
      raise UserError(
        f"{path_or_hub_id} holds weights quantized as {stored.mode}: they take no adapter, step,"
        " other type or quantization"
      )
    return LanguageModel(stored.weights, mesh, quantized=stored)
  loaded = model_io.load(str(path_or_hub_id), dtype, mesh, step)
  if adapter is not None:
    merged = lora.merged(loaded.params, peft_files.read_adapter(adapter, loaded.config))
    # Laid out like the weights were: what is computed here is not.
    put = lambda new, old: jax.device_put(new, old.sharding)
    loaded = loaded._replace(params=jax.tree.map(put, merged, loaded.params))
  if quantization is not None:
    stored = model_io.quantize(loaded, quantization, mesh)
    return LanguageModel(stored.weights, mesh, quantized=stored)
  return LanguageModel(loaded, mesh)


def init(config: ModelConfig, seed: int = 0, mesh: Mesh | None = None) -> LanguageModel:
  """A model with random weights, by `config.initializer`, and without a tokenizer."""
  mesh = mesh or model_io.first_device()
  return LanguageModel(model_io.init(config, seed, mesh), mesh)


class LanguageModel:
  """A model in memory. Made by `load` or `init`.

  Attributes:
    config: its ModelConfig.
    params: its weights, jax arrays in the layout that model/decoder.py describes; of a quantized
      model the dequantized weights, made when first used. `lm.params = …` replaces them by others
      of the same names and shapes, which are laid out over the devices as the old ones were.
    quantization: how its weights are quantized, None if they are not. `generate` computes with the
      quantized weights themselves, and 'w8a8' rounds activations there only.
    mesh: the devices it is on.
    tokenizer: a fast transformers tokenizer, read when first used; None if the folder has none.
    task: what it was fine-tuned for, with what its examples were made with (FOLDER/task.json), read
      when first used; None for a language model.
    generation_config: defaults of `generate` in the model's files, by option, read when first used;
      set it to {} to ignore them.

  Ids and masks are anything that NumPy makes arrays of. With an `attention_mask` (1 real, 0 for
  padding on either side) real tokens attend to real tokens only and positions count from the first
  of them, unless `position_ids` are given; results at padding mean nothing. Compiled functions are
  kept, and lengths rounded up inside, so that only the first call of a kind is slow. Wrong input
  raises UserError.
  """

  def __init__(
    self,
    loaded: model_io.LoadedModel,
    mesh: Mesh,
    quantized: model_io.QuantizedWeights | None = None,
  ):
    self.config, self.mesh = loaded.config, mesh
    self._params = loaded.params
    self._loaded = loaded._replace(params=None)
    self._quantized = quantized
    self._unstacked: tuple[Any, Any] | None = None  # leaves of params, what was made of them
    self._encoder: tuple[Any, DocumentEncoder] | None = None  # and the tokenizer that it is of

  @property
  def params(self) -> Any:
    if self._params is None and self._quantized is not None:
      self._params = model_io.dequantized(self._quantized, self.mesh)
    return self._params

  @params.setter
  def params(self, params: Any) -> None:
    if self._quantized is not None:
      raise UserError(
        f"the model computes with weights quantized as {self._quantized.mode}: load it without"
        " quantization to give it others"
      )
    refuse_traced("lm.params", params)
    self._params = model_io.placed_like(model_io.abstract_params(self.config, self.mesh), params)

  def __repr__(self) -> str:
    config, device = self.config, self.mesh.devices.flat[0]
    head = "" if config.head == "lm" else f", head {config.head}"
    return (
      f"LanguageModel({config.model_type}, {config.num_params():,} parameters in"
      f" {self.quantization or config.param_dtype}{head}, {config.num_layers} layers, vocabulary"
      f" {config.vocab_size}, {config.max_position_embeddings} positions, on {self.mesh.size} x"
      f" {device.device_kind})"
    )

  def __call__(
    self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **options
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`logits` of what a tokenizer returns: lm(**tokenizer(texts))."""
    for name in options:
      if name != "mc_token_ids":
        raise UserError(
          f"a model takes input_ids, attention_mask, position_ids and mc_token_ids, and not {name};"
          " lm.hidden_states(ids) and lm.attentions(ids) give what is inside"
        )
    return self.logits(input_ids, attention_mask, position_ids, **options)

  @property
  def quantization(self) -> str | None:
    return None if self._quantized is None else self._quantized.mode

  @functools.cached_property
  def tokenizer(self) -> Any:
    source = self._loaded.tokenizer_from
    if source is None:
      return None
    # In a folder of ours tokenizer.json is all of the tokenizer, whatever config.json seems to say.
    ours = data.saved_tokenizer(source) if is_checkpoint_folder(source) else None
    return ours or data.load_tokenizer(source)

  @functools.cached_property
  def generation_config(self) -> dict[str, Any]:
    tokenizer, kept = self.tokenizer, self._loaded.kept_files
    end = None if tokenizer is None else data.find_end_of_text(tokenizer)
    return model_defaults.read(kept.get(GENERATION_CONFIG), kept.get(HF_CONFIG), end)

  @functools.cached_property
  def task(self) -> TaskSpec | None:
    text = self._loaded.kept_files.get(task_file.FILE)
    return None if text is None else TaskSpec.from_json(text, task_file.FILE)

  @property
  def has_template(self) -> bool:
    """Whether it was fine-tuned on instructions: `prompt_ids` writes prompts as it learned them."""
    return self.task is not None and self.task.task == "instruction"

  # --- forward passes -----------------------------------------------------------------------------

  def logits(
    self,
    ids: Any,
    attention_mask: Any = None,
    position_ids: Any = None,
    *,
    mc_token_ids: Any = None,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Next-token logits, float32 B x T x V (V: the true vocabulary); or the outputs of the head.

    sequence classification B x C · token classification B x T x C · question answering the pair
    (start, end), each B x T · double heads the pair of next-token logits … x T x V and choice
    scores …, for ids … x T and mc_token_ids … (default: the last position).
    """
    ids = integers("ids", ids)
    if ids.ndim < 2 or (ids.ndim > 2 and self.config.head != "double_heads") or not ids.size:
      raise UserError(f"ids have shape {ids.shape}; they are B x T, of at least one token")
    rows, shape = ids.reshape(-1, ids.shape[-1]), ids.shape[:-1]
    token_B = forward.token_of_row(self.config, rows, mc_token_ids)
    method = "logits" if self.config.head == "lm" else "outputs"
    outputs, T = self._run(
      forward.outputs, rows, attention_mask, position_ids, method=method, token_B=token_B
    )
    if self.config.head == "sequence_classification":
      return outputs
    if self.config.head == "double_heads":
      logits_BxTxV, scores_B = outputs
      return logits_BxTxV[:, :T].reshape(*ids.shape, -1), scores_B.reshape(shape)
    return jax.tree.map(lambda x: x[:, :T], outputs)

  def hidden_states(self, ids: Any, attention_mask: Any = None) -> tuple[jax.Array, ...]:
    """Embeddings, then each block's output, the last after the final norm: L + 1 of B x T x D."""
    states, T = self._run(forward.hidden_states, ids, attention_mask)
    return tuple(x[:, :T] for x in states)

  def predict(self, inputs: Any, *, batch_size: int = prediction.ROWS) -> list[dict[str, Any]]:
    """Labels, values, choices, entities or spans with probabilities, one object for each input.

    lm.predict(["WINNER! Call now", "see you at 8"]) for a model that classifies texts; other models
    take dictionaries of fields: {"first": …, "second": …} for pairs, {"question": …, "choices":
    […]}, {"question": …, "context": …}, {"text": …} or {"tokens": […]} for entities. What is in the
    predictions: the modules of `examples`. Raises UserError.
    """
    spec, _ = prediction.task_of(self)
    return prediction.predict(self, prediction.records_of(inputs, spec), batch_size=batch_size)

  def attentions(self, ids: Any, attention_mask: Any = None) -> tuple[jax.Array, ...]:
    """Attention probabilities of each layer, L of B x H x T x T, always from the O(T²) path."""
    layers, T = self._run(forward.attentions, ids, attention_mask)
    return tuple(x[:, :, :T, :T] for x in layers)

  def _run(self, function: Any, *arguments: Any, **options: Any) -> tuple[Any, int]:
    return forward.run(function, self.config, self.mesh, self.params, *arguments, **options)

  # --- texts --------------------------------------------------------------------------------------

  def score(self, texts: Sequence[str]) -> list[Score]:
    """Negative log-likelihood of each text, as perplexity is measured.

    The end-of-text token precedes each text and is not scored; a text longer than the model is
    split into disjoint windows, each beginning with the last token of the one before. Sums are
    float64. An empty text has no tokens.
    """
    self._require_lm_head("score")
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = require_tokenizer(self, "score")
    data.check_vocabulary(tokenizer, self.config.vocab_size)
    documents = [data.Document(text, "", f"texts[{i}]") for i, text in enumerate(texts)]
    for document in documents:
      try:
        document.text.encode()
      except UnicodeEncodeError as error:
        raise UserError(f"{document.location} is not valid text: {error.reason}") from None
    longest = max((len(ids) for ids in DocumentEncoder(tokenizer).encode(texts)), default=1)
    ways = batch_ways(self.mesh)
    batches = data.EvaluationBatches(
      documents,
      tokenizer,
      batch_size=round_up(min(_SCORED_ROWS, max(len(texts), 1)), ways),
      seq_len=min(round_up(longest, forward.BUCKET), self.config.max_position_embeddings),
    )
    nll = data.document_nll(lambda batch: self.predictions(batch).nll_BxT, batches)
    counts = zip(batches.tokens_per_document, batches.bytes_per_document)
    return [
      Score(nll=nll.get(number, 0.0), tokens=tokens, bytes=size)
      for number, (tokens, size) in enumerate(counts)
    ]

  def predictions(self, batch: dict[str, np.ndarray]) -> TokenPredictions:
    """How each token of a batch is predicted, float32 B x T, without waiting for it.

    The batch is as `data.EvaluationBatches` makes it (`inputs` and `targets`, int32 B x T, and
    `weights`; other entries are not used); B is a multiple of the mesh's data x fsdp. Compiled for
    each shape.
    """
    self._require_lm_head("predict tokens")
    arrays = {name: batch[name] for name in ("inputs", "targets", "weights") if name in batch}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.params)
    leaves, tree = jax.tree.flatten(shardings)
    module = heads.build(self.config)
    # flax's modules are frozen dataclasses with a hash; its annotations make them plain ones.
    step = _eval_step(module, tuple(leaves), tree, self.mesh)  # pyrefly: ignore[bad-argument-type]
    with jax.set_mesh(self.mesh), exact_products(self.config.dtype):
      return step(self.params, steps.place_batch(arrays, self.mesh, len(arrays["inputs"])))

  def generate(
    self, prompts: Any = None, attention_mask: Any = None, seed: int = 0, *,
    input_ids: Any = None, **options,
  ) -> Generation:  # fmt: skip
    """Continues prompts: a text, texts, or ids (rows of any lengths, or B x T with a mask).

    What a tokenizer returns goes in as lm.generate(**tokenizer(texts)), padded or not.
    Options have transformers' names, meaning and defaults; `sampling.GenerationOptions` lists them.
    Greedy unless do_sample or num_beams say otherwise. Text is drawn by the seed and the prompt
    alone, whatever else is in the batch. Raises UserError before anything is computed: for an
    unknown option, options that contradict, a prompt that is empty or too long.
    """
    self._require_lm_head("generate")
    if prompts is not None and input_ids is not None:
      raise UserError("generate: prompts and input_ids are both given; they are the same")
    prompts = input_ids if prompts is None else prompts
    call = api.prepare(self, prompts, attention_mask, seed, options)
    return api.generate(self, self.unstacked_params, call)

  def stream(self, prompt: Any, seed: int = 0, **options) -> Iterator[str]:
    """The new text of one prompt as it is generated, in pieces of complete characters.

    Options as `generate`'s.
    """
    self._require_lm_head("generate")
    call = api.prepare_stream(self, prompt, seed, options)
    return api.stream(self, self.unstacked_params, call)

  def prompt_ids(self, prompt: Any) -> list[int]:
    """A prompt as the model learned to answer it: lm.generate([lm.prompt_ids("Who was it?")]).

    `generate` itself continues what it is given. Here the template that the model was fine-tuned
    with (`lm.task`) writes a text, the fields of a record ({"instruction": …, "input": …}), or
    messages ([{"role": "user", "content": …}, …]) of which the user's is last: the ids are those of
    training. Raises UserError for a model that was not fine-tuned on instructions.
    """
    if self.task is None or not self.has_template:
      raise UserError(
        "the model was not fine-tuned on instructions, so it has no template: generate continues"
        " texts as they are"
      )
    tokenizer = require_tokenizer(self, "write a prompt")
    if self._encoder is None or self._encoder[0] is not tokenizer:
      self._encoder = tokenizer, DocumentEncoder(tokenizer)
    return instruction.prompt_ids(prompt, self.task, self._encoder[1]).tolist()

  @property
  def unstacked_params(self) -> Any:
    """The weights in the layout that decoding runs on (generation/unstacked.py).

    A copy of `params`, made when first used and again after they have changed.
    """
    if self._quantized is not None:
      return self._quantized.unstacked_params
    leaves = jax.tree.leaves(self.params)
    if self._unstacked is None or any(a is not b for a, b in zip(self._unstacked[0], leaves)):
      with jax.set_mesh(self.mesh):
        self._unstacked = (leaves, unstacked.decoding_params(self.config, self.params))
    return self._unstacked[1]

  # --- changes ------------------------------------------------------------------------------------

  def resize_vocabulary(self, size: int, seed: int = 0) -> None:
    """Gives the model `size` ids, in place: drops the last rows of the tables, or adds new ones.

    New rows are drawn around the mean of the old ones with 1e-9 of their covariance, as
    transformers does: so near the mean that no old token's probability changes much.
    """
    if self._quantized is not None:
      raise UserError("the model's weights are quantized; resize it before")
    if size < 1:
      raise UserError(f"the vocabulary is to have {size} ids; it has at least 1")
    self.config, self._params = model_io.resize_vocabulary(
      self.config, self.params, self.mesh, size, seed
    )

  def save(self, path: str) -> None:
    """Writes a self-contained folder: weights (step 0), config.json, tokenizer if there is one.

    A quantized model is saved as it is, in quantised.safetensors. Raises UserError if `path` is
    there and not empty, is not local, or the disk is full.
    """
    if self._quantized is not None:
      model_io.save_quantized(path, self._quantized, self.tokenizer)
      return
    model_io.save(
      path, self._loaded._replace(config=self.config, params=self.params), self.tokenizer
    )

  def _require_lm_head(self, what: str) -> None:
    if not self.config.has_lm_head:
      raise UserError(f"cannot {what}: the model's head is {self.config.head!r}, not next-token")


@functools.lru_cache(maxsize=8)
def _eval_step(module, sharding_leaves, tree, mesh):
  """Shared by all models of one config."""
  return steps.make_eval_step(
    functools.partial(next_token.predictions, module),
    jax.tree.unflatten(tree, sharding_leaves),
    mesh,
  )
