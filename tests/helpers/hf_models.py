"""Random Hugging Face models in eager PyTorch, and their weights as a parameter tree of ours.

The conversion is the tests' own, so that the product's may be tested against it.
"""

import numpy as np
import torch
import transformers

from gptneo_jax.config import ModelConfig


def _randomise(model: torch.nn.Module, std: float, seed: int) -> torch.nn.Module:
  """Every tensor gets weight: biases are not 0, and layer norms' scales lie around 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(std * torch.randn(p.shape, generator=generator))
      if ".ln_" in name and name.endswith("weight"):
        p.add_(1.0)
  return model.eval()


def gpt_neo(
  pattern=("global", "local"), layers=4, hidden=24, heads=4, window=6, positions=64, vocab=61,
  intermediate=None, std=0.1, seed=0, cls=transformers.GPTNeoForCausalLM, **head,
):  # fmt: skip
  config = transformers.GPTNeoConfig(
    vocab_size=vocab,
    max_position_embeddings=positions,
    hidden_size=hidden,
    num_layers=layers,
    num_heads=heads,
    intermediate_size=intermediate,
    attention_types=[[list(pattern), layers // len(pattern)]],
    window_size=window,
    attn_implementation="eager",
    use_cache=False,
    bos_token_id=0,
    eos_token_id=0,
    **head,
  )
  return _randomise(cls(config).float(), std, seed)


def gpt2(
  layers=4, hidden=24, heads=4, positions=64, vocab=61, intermediate=None, std=0.1, seed=0,
  cls=transformers.GPT2LMHeadModel, **head,
):  # fmt: skip
  config = transformers.GPT2Config(
    vocab_size=vocab,
    n_positions=positions,
    n_embd=hidden,
    n_layer=layers,
    n_head=heads,
    n_inner=intermediate,
    attn_implementation="eager",
    use_cache=False,
    bos_token_id=0,
    eos_token_id=0,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    **head,
  )
  return _randomise(cls(config).float(), std, seed)


SETTINGS = {  # settings beside the released models' that transformers computes
  "unscaled": (gpt2, {"scale_attn_weights": False}),
  "by layer": (
    gpt2,
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
  ),
  "unscaled by layer, quick_gelu": (
    gpt2,
    {
      "scale_attn_weights": False,
      "scale_attn_by_inverse_layer_idx": True,
      "activation_function": "quick_gelu",
    },
  ),
  "relu": (gpt2, {"activation_function": "relu"}),
  "gelu": (gpt_neo, {"activation_function": "gelu"}),
  "swish, no period": (
    gpt_neo,
    {"activation_function": "swish", "pattern": ("local", "global", "global", "local")},
  ),
  "gelu_fast": (gpt_neo, {"activation_function": "gelu_fast", "layers": 2}),
}

CLASSES = {
  "gpt_neo": {
    "lm": transformers.GPTNeoForCausalLM,
    "sequence_classification": transformers.GPTNeoForSequenceClassification,
    "token_classification": transformers.GPTNeoForTokenClassification,
    "question_answering": transformers.GPTNeoForQuestionAnswering,
  },
  "gpt2": {
    "lm": transformers.GPT2LMHeadModel,
    "sequence_classification": transformers.GPT2ForSequenceClassification,
    "token_classification": transformers.GPT2ForTokenClassification,
    "question_answering": transformers.GPT2ForQuestionAnswering,
    "double_heads": transformers.GPT2DoubleHeadsModel,
  },
}
HEAD_TENSORS = {  # where the head's weight and bias are
  "sequence_classification": "score",
  "token_classification": "classifier",
  "question_answering": "qa_outputs",
  "double_heads": "multiple_choice_head.summary",
}


def head_of(model) -> str:
  names = CLASSES[model.config.model_type]
  return next(head for head, cls in names.items() if isinstance(model, cls))


def config_of(model) -> ModelConfig:
  """Our configuration of a model made above."""
  c = model.config
  neo = c.model_type == "gpt_neo"
  return ModelConfig(
    model_type=c.model_type,
    vocab_size=c.vocab_size,
    max_position_embeddings=c.max_position_embeddings,
    hidden_size=c.hidden_size,
    num_layers=c.num_layers if neo else c.n_layer,
    num_heads=c.num_heads if neo else c.n_head,
    intermediate_size=(c.intermediate_size if neo else c.n_inner) or 0,
    attention_pattern=tuple(c.attention_types[0][0]) if neo else ("global",),
    window_size=c.window_size if neo else 256,
    activation_function={"gelu_fast": "gelu_new", "swish": "silu"}.get(
      c.activation_function, c.activation_function
    ),
    scale_attn_weights=neo or c.scale_attn_weights,
    scale_attn_by_inverse_layer_idx=not neo and c.scale_attn_by_inverse_layer_idx,
    head=head_of(model),
    num_labels=c.num_labels,
    problem_type=c.problem_type or "",
    pad_token_id=-1 if c.pad_token_id is None else c.pad_token_id,
  )


def tensors(model, gradients=False) -> dict[str, np.ndarray]:
  """The model's weights, or their gradients, by PyTorch's names; the tied head once."""
  return {
    name: (p.grad if gradients else p).detach().numpy().copy()
    for name, p in model.named_parameters()
  }


def to_params(state: dict[str, np.ndarray], config: ModelConfig) -> dict:
  """PyTorch's tensors as our stacked tree."""
  D, H, K = config.hidden_size, config.num_heads, config.head_dim

  def norm(name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

  def dense(name):  # nn.Linear of GPT-Neo is (out, in), Conv1D of GPT-2 is (in, out)
    kernel = state[f"{name}.weight"]
    kernel = kernel.T if config.model_type == "gpt_neo" else kernel
    return {"kernel": kernel, "bias": state[f"{name}.bias"]}

  def attention(prefix):
    if config.model_type == "gpt_neo":
      prefix += ".attention"
      qkv = {
        n: {"kernel": state[f"{prefix}.{n}_proj.weight"].T.reshape(D, H, K)}
        for n in ("q", "k", "v")
      }
      out = dense(f"{prefix}.out_proj")
    else:
      kernels = np.split(state[f"{prefix}.c_attn.weight"], 3, axis=1)
      biases = np.split(state[f"{prefix}.c_attn.bias"], 3)
      qkv = {
        n: {"kernel": kernel.reshape(D, H, K), "bias": bias.reshape(H, K)}
        for n, kernel, bias in zip("qkv", kernels, biases)
      }
      out = dense(f"{prefix}.c_proj")
    return {**qkv, "out": {"kernel": out["kernel"].reshape(H, K, D), "bias": out["bias"]}}

  def layer(i):
    prefix = f"transformer.h.{i}"
    return {
      "ln_1": norm(f"{prefix}.ln_1"),
      "ln_2": norm(f"{prefix}.ln_2"),
      "attn": attention(f"{prefix}.attn"),
      "mlp": {n: dense(f"{prefix}.mlp.{n}") for n in ("c_fc", "c_proj")},
    }

  def stack(layers):
    first = layers[0]
    if isinstance(first, dict):
      return {key: stack([tree[key] for tree in layers]) for key in first}
    return np.stack(layers)

  head = {}
  if config.head != "lm":
    name = HEAD_TENSORS[config.head]
    head["head"] = {"kernel": state[f"{name}.weight"].T}
    if f"{name}.bias" in state:
      head["head"]["bias"] = state[f"{name}.bias"]
  return {
    **head,
    "wte": state["transformer.wte.weight"],
    "wpe": state["transformer.wpe.weight"],
    "ln_f": norm("transformer.ln_f"),
    "blocks": {
      f"layer_{j}": stack([layer(i) for i in range(j, config.num_layers, config.period)])
      for j in range(config.period)
    },
  }
