"""Folders as Hugging Face saves them, made without PyTorch.

The names and shapes are spelled out here, and not taken from the product's table.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
import safetensors.numpy

D, H, F, V, P = 24, 4, 40, 61, 32  # width, heads, hidden width, vocabulary, positions

CONFIGS = {
  "gpt_neo": {
    "model_type": "gpt_neo",
    "architectures": ["GPTNeoForCausalLM"],
    "vocab_size": V,
    "max_position_embeddings": P,
    "hidden_size": D,
    "num_layers": 4,
    "num_heads": H,
    "intermediate_size": F,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 6,
    "bos_token_id": 0,
    "eos_token_id": 0,
  },
  "gpt2": {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": V,
    "n_positions": P,
    "n_embd": D,
    "n_layer": 3,
    "n_head": H,
    "n_inner": F,
    "bos_token_id": 0,
    "eos_token_id": 0,
  },
}

_NEO_LAYER = {
  "ln_1.weight": (D,),
  "ln_1.bias": (D,),
  "attn.attention.k_proj.weight": (D, D),
  "attn.attention.v_proj.weight": (D, D),
  "attn.attention.q_proj.weight": (D, D),
  "attn.attention.out_proj.weight": (D, D),
  "attn.attention.out_proj.bias": (D,),
  "ln_2.weight": (D,),
  "ln_2.bias": (D,),
  "mlp.c_fc.weight": (F, D),
  "mlp.c_fc.bias": (F,),
  "mlp.c_proj.weight": (D, F),
  "mlp.c_proj.bias": (D,),
}
_GPT2_LAYER = {
  "ln_1.weight": (D,),
  "ln_1.bias": (D,),
  "attn.c_attn.weight": (D, 3 * D),
  "attn.c_attn.bias": (3 * D,),
  "attn.c_proj.weight": (D, D),
  "attn.c_proj.bias": (D,),
  "ln_2.weight": (D,),
  "ln_2.bias": (D,),
  "mlp.c_fc.weight": (D, F),
  "mlp.c_fc.bias": (F,),
  "mlp.c_proj.weight": (F, D),
  "mlp.c_proj.bias": (D,),
}
HEADS = {
  "GPTNeoForSequenceClassification": {"score.weight": (3, D)},
  "GPTNeoForTokenClassification": {"classifier.weight": (3, D), "classifier.bias": (3,)},
  "GPTNeoForQuestionAnswering": {"qa_outputs.weight": (2, D), "qa_outputs.bias": (2,)},
  "GPT2ForSequenceClassification": {"score.weight": (3, D)},
  "GPT2ForTokenClassification": {"classifier.weight": (3, D), "classifier.bias": (3,)},
  "GPT2ForQuestionAnswering": {"qa_outputs.weight": (2, D), "qa_outputs.bias": (2,)},
  "GPT2DoubleHeadsModel": {
    "multiple_choice_head.summary.weight": (1, D),
    "multiple_choice_head.summary.bias": (1,),
  },
}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
  layer, layers = (_NEO_LAYER, 4) if family == "gpt_neo" else (_GPT2_LAYER, 3)
  return {
    "transformer.wte.weight": (V, D),
    "transformer.wpe.weight": (P, D),
    **{f"transformer.h.{i}.{name}": s for i in range(layers) for name, s in layer.items()},
    "transformer.ln_f.weight": (D,),
    "transformer.ln_f.bias": (D,),
  }


def tensors(family="gpt_neo", dtype="float32", architecture=None) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  all_shapes = {**shapes(family), **HEADS.get(architecture, {})}
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in all_shapes.items()}


def config(family="gpt_neo", **changes) -> dict:
  return {**CONFIGS[family], **changes}


def save(folder: pathlib.Path, fields: dict, weights: dict[str, np.ndarray] | None = None) -> str:
  """Writes config.json and, unless None, model.safetensors; returns the folder's name."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(fields))
  if weights is not None:
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
  return str(folder)


def split(folder: pathlib.Path, weights: dict[str, np.ndarray], parts=3) -> None:
  """Writes the weights as several files with an index."""
  names = list(weights)
  weight_map = {}
  for part in range(parts):
    file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
    chosen = {name: weights[name] for name in names[part::parts]}
    safetensors.numpy.save_file(chosen, folder / file, {"format": "pt"})
    weight_map |= dict.fromkeys(chosen, file)
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder's safetensors files, read by the library."""
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    found |= safetensors.numpy.load_file(file)
  return found


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  """Same names, types, shapes and bits."""
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    found = actual[name]
    assert (found.dtype, found.shape) == (array.dtype, array.shape), name
    assert found.tobytes() == np.ascontiguousarray(array).tobytes(), name


def word_tokenizer(folder: pathlib.Path, size: int = V) -> None:
  """A tokenizer of `size` words, the first of which ends a text."""
  import tokenizers
  import transformers

  words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, size)}}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<|endoftext|>"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
  ).save_pretrained(folder)
