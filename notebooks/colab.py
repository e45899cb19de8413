# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GPT-Neo in JAX: train it, measure it, look inside, teach it to answer
#
# A language model reads a text and says, at each place, how likely every possible next piece of
# text is. That is all it does. Here you train a small one, bring in GPT-Neo 125M, measure both,
# let them write, look at what attention sees, turn one into a chatbot that knows *your* answers,
# and take it home.
#
# The same cells run on a TPU (v5e-1), on a GPU (T4) and on a CPU. In Colab choose one under
# *Runtime → Change runtime type*, then *Runtime → Run all*. Without a network it works too: then
# the small model of section 3 takes the place of GPT-Neo 125M everywhere.
#
# *Em português: este caderno treina um modelo pequeno, mede, gera texto, mostra a atenção por
# dentro e ensina um chatbot com as suas perguntas e respostas. Há um resumo em português no começo
# de cada seção; o código é um só.*

# %% [markdown]
# ## 0. What you may change
#
# Everything that you may want to change is in this cell. `SMALL` makes all sizes so small that the
# whole notebook runs in a few minutes on a laptop; it leaves nothing out. The large sizes are for
# one accelerator; on a CPU have patience, or lower them.
#
# *Em português: mude só esta célula. `SMALL` deixa tudo pequeno, sem pular nada.*

# %%
import os
import pathlib

SMALL = bool(os.environ.get("GPTNEO_NOTEBOOK_SMALL"))

SOURCE = "./gptneo_jax"  # what pip installs: the folder of a checkout (with ./), or a wheel
CHECKPOINT = "EleutherAI/gpt-neo-125m"  # on Hugging Face's hub; any GPT-Neo or GPT-2
WORK = pathlib.Path("gptneo_work")  # all that is made here is in this folder
DRIVE = "MyDrive/gptneo"  # the folder of your Google Drive that section 9 copies to
HUB_REPOSITORY = ""  # "you/my-chatbot" sends it to the hub; "": the command is only shown

TRAIN_STEPS = 40 if SMALL else 600  # of the small model
EVALUATE_EVERY = 20 if SMALL else 100  # steps
BATCH_SIZE = 4 if SMALL else 8  # rows of text in a step
DOCUMENTS = 2 if SMALL else 8  # that are measured, and items of each task
NEW_TOKENS = 16 if SMALL else 40  # of each text that is generated
TEMPERATURES = (0.5, 1.0) if SMALL else (0.3, 0.7, 1.0, 1.3)
TOP_PS = (0.5, 0.9) if SMALL else (0.5, 0.9, 1.0)
READINGS = 60  # how often the chatbot reads each question and answer

# %% [markdown]
# ## 1. Install
#
# Colab's runtimes come with Python 3.13 and with a jax that is too old for this package (0.7.2), so
# the package is installed **before anything imports jax**, with the jax of this machine: `[tpu]`,
# `[gpu]`, or plain on a CPU. `SOURCE` above says from where. Upload the folder of a checkout or
# clone it beside this notebook, so that `./gptneo_jax` is there.
#
# - Where the package can be imported already, nothing is installed.
# - pip may complain that another package, such as torch-xla, wants an older libtpu. Nothing here
#   uses that package.
# - If an old jax had been loaded before, the last line says so: choose *Runtime → Restart session*
#   and run the notebook again from the top.
#
# *Em português: instala o pacote com o JAX certo para TPU, GPU ou CPU. Se aparecer "restart the
# runtime", reinicie a sessão e execute tudo de novo.*

# %%
import glob
import importlib
import importlib.util
import subprocess
import sys

# Asked in a process of its own, so that this one loads no jax yet.
asked = [sys.executable, "-c", "import gptneo_jax; gptneo_jax.__version__"]
there = subprocess.run(asked, capture_output=True)
if there.returncode != 0:
  extras = "eval"  # lm-evaluation-harness and matplotlib
  if glob.glob("/dev/nvidia[0-9]*"):
    extras += ",gpu"
  elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):  # a TPU's files
    extras += ",tpu"
  print(f"pip install {SOURCE}[{extras}]")
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{SOURCE}[{extras}]"], check=True)
  importlib.invalidate_caches()

import gptneo_jax

print("gptneo_jax", gptneo_jax.__version__)

# %% [markdown]
# ## 2. What device is there?
#
# JAX compiles each function for the device that it finds. The first call of a kind takes seconds,
# the next ones do not.
#
# One process at a time owns a TPU, and one process takes most of a GPU's memory. That process is
# this notebook. So what computes on the device is called from Python here, and commands that only
# change files are run beside it on the CPU, by this small function.
#
# *Em português: veja qual dispositivo existe. A TPU é deste processo; os comandos auxiliares rodam
# na CPU.*

# %%
import html
import json
import math
import shlex
import shutil

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image, display

device = jax.devices()[0]
print(f"jax {jax.__version__}: {jax.device_count()} x {device.device_kind} ({device.platform})")


def command(line):
  """Runs a command on the CPU and prints what it prints; raises if it fails."""
  print("$", line)
  words = [sys.executable, *shlex.split(line)[1:]]  # "python" is the one that runs this notebook
  done = subprocess.run(
    words,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  print(done.stdout)
  done.check_returncode()


def show_table(header, rows):
  """A table whose cells keep their line breaks."""
  cell = "<td style='text-align:left; vertical-align:top; white-space:pre-wrap'>{}</td>"
  made = ["<tr>" + "".join(f"<th>{html.escape(str(h))}</th>" for h in header) + "</tr>"]
  for row in rows:
    made.append("<tr>" + "".join(cell.format(html.escape(str(value))) for value in row) + "</tr>")
  display(HTML("<table>" + "".join(made) + "</table>"))


plt.rcParams.update({"figure.constrained_layout.use": True, "font.size": 10, "figure.dpi": 110})
WORK.mkdir(exist_ok=True)
came_of_it = {"device": device.device_kind}  # what section 10 shows

# %% [markdown]
# ## 3. Train a small model from nothing
#
# The data are the sources of Python's own standard library: every machine has them, so nothing is
# downloaded. The packages `json`, `logging` and `urllib` are held out: the model never trains on
# them, and every `EVALUATE_EVERY` steps it is measured on them.
#
# **Perplexity** is the figure to watch. The model's loss is the mean of $-\log p$(next token), in
# nats; perplexity is its exponential: among how many equally likely tokens the model is as
# uncertain as it is. A model that knows nothing has the size of its vocabulary; one that knows
# everything would have 1.
#
# `tiny.get_config()` is a recipe with all settings; change those that you want. `train.run` trains,
# measures and saves. Run it again with the same folder: it resumes, or sees that it is done.
#
# *Em português: treina um modelo pequeno com o código-fonte do próprio Python. A perplexidade,
# medida em textos que ele nunca viu, deve cair.*

# %%
from gptneo_jax import train
from gptneo_jax.configs import tiny

config = tiny.get_config()
if SMALL:
  config.model.update(vocab_size=512, hidden_size=64, num_heads=2, window_size=16)
  config.model.max_position_embeddings = config.seq_len = 128
config.steps, config.batch_size = TRAIN_STEPS, BATCH_SIZE
config.schedule.update(warmup_steps=TRAIN_STEPS // 10, decay_steps=TRAIN_STEPS)
config.eval_every, config.checkpoint_every, config.log_every = EVALUATE_EVERY, 0, TRAIN_STEPS // 40
config.eval.documents = DOCUMENTS
config.eval.sample_tokens = NEW_TOKENS

small_run = WORK / "small"
assert train.run(config, str(small_run)) == 0

# %% [markdown]
# Each step wrote a line of figures to `metrics.jsonl`. Here is the curve: the loss of the training
# batches falls (each batch is another text, so it jumps), and perplexity on the held-out packages
# falls with it. Were the second to rise while the first falls, the model would be learning its
# training texts by heart.

# %%
lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
trained = [line for line in lines if "train/loss" in line]
losses = [line["train/loss"] for line in trained]
measured = [line for line in lines if "eval/perplexity" in line]
validation = [line["eval/perplexity"] for line in measured]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
left.plot([line["step"] for line in trained], losses, ".-", label="training batches")
left.plot(
  [line["step"] for line in measured],
  [line["eval/loss"] for line in measured],
  "o",
  label="held-out packages",
)
left.set(title="Loss", xlabel="step", ylabel="nats per token")
left.legend()
right.plot([line["step"] for line in measured], validation, "o-", color="C1")
for line in measured:
  place = (line["step"], line["eval/perplexity"])
  right.annotate(f"{place[1]:.0f}", place, (4, 6), textcoords="offset points")
right.margins(0.1, 0.15)
right.set(title="Perplexity of the held-out packages", xlabel="step", ylabel="perplexity")
plt.show()

knows_nothing = config.model.vocab_size
print(f"knowing nothing: {knows_nothing}; after {TRAIN_STEPS} steps: {validation[-1]:.1f}")
came_of_it["training loss"] = [losses[0], losses[-1]]
came_of_it["validation perplexity"] = validation

# %% [markdown]
# ## 4. Weights in and out: Hugging Face's format and ours
#
# A run's folder holds Orbax checkpoints, which is what training writes fast and resumes from.
# The rest of the world exchanges folders in Hugging Face's format. `convert` goes both ways, one
# tensor at a time, and changes no number.
#
# First outward: the small model becomes a folder that `transformers` opens.
#
# *Em português: `convert` traz pesos do Hugging Face e leva os seus de volta, sem mudar nenhum
# número.*

# %%
small_hf = WORK / "small_hf"
shutil.rmtree(small_hf, ignore_errors=True)  # convert writes to new folders only
command(f"python -m gptneo_jax.convert orbax-to-hf {small_run} {small_hf}")

# %% [markdown]
# Then inward: GPT-Neo 125M, from the hub. Where the hub cannot be reached, and where `SMALL` is
# set, it is the folder that was just written, which is in the same format.


# %%
def hub_has(name):
  """Whether the hub can be reached and has this model."""
  import huggingface_hub

  try:
    return bool(huggingface_hub.HfApi().model_info(name, timeout=10))
  except Exception as error:  # no network, offline mode, a wrong name
    print(f"not from the hub: {error}")
    return False


weights = CHECKPOINT if not SMALL and hub_has(CHECKPOINT) else str(small_hf)
neo = WORK / "neo"
shutil.rmtree(neo, ignore_errors=True)
command(f"python -m gptneo_jax.convert hf-to-orbax {weights} {neo}")

# %% [markdown]
# Is it the same model? `verify` runs both on the same random tokens, PyTorch's `transformers` on
# one side and this package on the other, past the window of local attention and with padding, and
# prints the largest difference between their logits. Rounding of 32-bit numbers leaves 1e-5 or
# less; above 1e-4 the command fails.
#
# This is the one place that needs PyTorch, for it is what we compare with. Colab has it.

# %%
if importlib.util.find_spec("torch"):
  command(f"python -m gptneo_jax.convert verify {weights} {neo}")
  parity = json.loads((neo / "parity.json").read_text())
  came_of_it["largest difference from PyTorch"] = parity["max_abs_difference"]
else:
  print("not verified: PyTorch is not installed here (pip install torch, then run this cell again)")

# %% [markdown]
# From here on, `lm` is that model.

# %%
lm = gptneo_jax.load(str(neo))
print(lm)

# %% [markdown]
# ## 5. Perplexity and tasks
#
# `lm.score` gives, for each text, the sum of $-\log p$ over its tokens. From it come the two
# figures of the field:
#
# - **perplexity** = exp(nll / tokens): per *token*, so only models with the same tokenizer compare;
# - **bits per byte** = nll / (bytes · ln 2): per byte of the text, so any two models compare. It is
#   also the size to which the model could compress the text: 8 is no compression at all.
#
# Write sentences of your own. A model finds likely what resembles what it has read.
#
# *Em português: a perplexidade diz quão surpreso o modelo fica com um texto; bits por byte permite
# comparar modelos com tokenizadores diferentes.*

# %%
texts = [
  "import os\nimport sys\n\n\ndef main():\n  print(sys.argv)\n",
  "The cat sat on the mat, and then it fell asleep.",
  "O gato sentou no tapete e depois dormiu.",
  "mat the on asleep and cat, fell then it sat The.",
]
scores = lm.score(texts)
show_table(
  ["text", "tokens", "perplexity", "bits per byte"],
  [
    [
      text,
      score.tokens,
      f"{math.exp(score.nll / score.tokens):,.1f}",
      f"{score.nll / (score.bytes * math.log(2)):.3f}",
    ]
    for text, score in zip(texts, scores)
  ],
)

# %% [markdown]
# `evaluate` does it for whole corpora, and runs the tasks of lm-evaluation-harness. Two tasks need
# no download, because their text is the manual inside Python: `stdlib_text` is bits per byte of its
# pages, and `stdlib_cloze` asks for the last word of a sentence. With a network, any task of the
# harness can stand here: `lambada_openai,piqa,hellaswag`.
#
# The command line is `python -m gptneo_jax.evaluate --checkpoint …`. Its `main`, called here, does
# the same in this process, which has the device. It writes a report with what is needed to
# reproduce the figures, and a picture. In its middle: a model that is *calibrated* is right half of
# the time where it is half sure, so its points lie on the dotted line.

# %%
from gptneo_jax import evaluate

arguments = f"""
  --checkpoint {neo} --data stdlib --tasks stdlib_text,stdlib_cloze --limit {DOCUMENTS}
  --output {WORK / "evaluation.json"}
"""
print("python -m gptneo_jax.evaluate", " ".join(arguments.split()), "\n")
assert evaluate.main(shlex.split(arguments)) == 0

report = json.loads((WORK / "evaluation.json").read_text())
came_of_it["perplexity"] = report["results"]["data"]["perplexity"]
came_of_it["bits per byte"] = report["results"]["data"]["bits_per_byte"]
came_of_it["tasks"] = {name: report["results"][name] for name in ("stdlib_text", "stdlib_cloze")}

# %%
display(Image(str(WORK / "evaluation.png")))

# %% [markdown]
# ## 6. Let it write
#
# The model gives probabilities; a *decoder* makes text of them, token by token. **Greedy** takes
# the likeliest token each time: always the same text, and soon a loop. **Sampling** draws by the
# probabilities, so another seed is another text, and the same seed is the same text.
#
# *Em português: o modelo dá probabilidades; a escolha do próximo token é sua. Guloso (greedy) pega
# sempre o mais provável; amostragem sorteia.*

# %%
prompt = "The most important thing about the sea is" if weights == CHECKPOINT else "def read(self"

rows = [["greedy", lm.generate(prompt, max_new_tokens=NEW_TOKENS).texts[0]]]
for seed in (1, 2, 3):
  made = lm.generate(prompt, do_sample=True, seed=seed, max_new_tokens=NEW_TOKENS)
  rows.append([f"sampling, seed {seed}", made.texts[0]])
show_table(["how", f"what follows {prompt!r}"], rows)

again = lm.generate(prompt, do_sample=True, seed=3, max_new_tokens=NEW_TOKENS).texts[0]
assert again == rows[-1][1]  # the same seed, the same text

# %% [markdown]
# Two settings shape the draw:
#
# - **temperature** divides the logits: below 1 the likely becomes likelier, above 1 everything
#   becomes possible;
# - **top-p** keeps the likeliest tokens that together have probability p, and drops the tail.
#
# Read the table from the upper left, timid, to the lower right, wild. All cells have the same seed.
# (`top_k=0` switches off a third filter, which keeps the 50 likeliest tokens by default.)

# %%
grid = [
  [
    lm.generate(
      prompt,
      do_sample=True,
      temperature=temperature,
      top_p=top_p,
      top_k=0,
      seed=1,
      max_new_tokens=NEW_TOKENS,
    ).texts[0]
    for top_p in TOP_PS
  ]
  for temperature in TEMPERATURES
]
show_table(
  ["temperature", *(f"top-p {top_p}" for top_p in TOP_PS)],
  [[temperature, *row] for temperature, row in zip(TEMPERATURES, grid)],
)

# %% [markdown]
# `lm.stream` gives the same text in pieces, as they are made: what a chat shows.

# %%
print(prompt, end="")
pieces = []
for piece in lm.stream(prompt, max_new_tokens=NEW_TOKENS):
  pieces.append(piece)
  print(piece, end="", flush=True)
assert "".join(pieces) == rows[0][1]  # greedy, as in the table

# %% [markdown]
# ## 7. Look inside
#
# ### What attention may see
#
# In each layer every token looks back at tokens before it and takes something from each. GPT-Neo's
# layers alternate: **global** layers see all tokens before, **local** ones only the last
# `window_size`, the token itself included. No token sees the future: that would be the answer.
#
# The picture is of a short window; the model's own is printed below it.
#
# *Em português: nas camadas globais cada token vê todos os anteriores; nas locais, só os últimos da
# janela. Ninguém vê o futuro.*

# %%
from gptneo_jax.attention import MaskSpec

figure, axes = plt.subplots(1, 2, figsize=(9, 4.6))
for axis, (kind, window) in zip(axes, {"global": None, "local": 6}.items()):
  visible = MaskSpec(window=window).dense_Bx1xTxT(20)[0, 0]
  axis.imshow(visible, cmap="Blues", vmin=0, vmax=1.4)
  title = f"{kind} layer" if window is None else f"{kind} layer, window of {window}"
  axis.set(title=title, xlabel="position that is seen", ylabel="position that looks")
  axis.set(xticks=range(0, 20, 5), yticks=range(0, 20, 5))
plt.show()

window = lm.config.window_size
kinds = [lm.config.attention_pattern[i % lm.config.period] for i in range(lm.config.num_layers)]
print(f"this model: layers {', '.join(kinds)}; window {window}")

# %% [markdown]
# ### What attention sees
#
# Within the mask the model decides how much of each token it takes: weights that add up to 1 in
# each row. `lm.attentions` gives them for every layer and head. Layers are drawn as the mean over
# their heads. Often the first token gets much: heads that look for something and do not find it
# look there.

# %%
from matplotlib.colors import PowerNorm

sentence = "The cat sat on the mat because it was tired."
ids = lm.tokenizer(sentence).input_ids
attentions = lm.attentions([ids])  # one array for each layer, B x H x T x T
labels = [lm.tokenizer.decode([i]).replace(" ", "·") for i in ids]


def draw_attention(axis, weights_TxT, title):
  """The colours follow the square root, so that small weights are seen. Returns what is drawn."""
  drawn = axis.imshow(weights_TxT, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
  size = 9 if len(labels) < 20 else 7
  axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
  axis.set_yticks(range(len(labels)), labels, fontsize=size)
  axis.set_title(title)
  return drawn


figure, axes = plt.subplots(1, 2, figsize=(11.5, 5.4), sharey=True)
for layer, axis in enumerate(axes):
  drawn = draw_attention(axis, attentions[layer][0].mean(0), f"layer {layer}, {kinds[layer]}")
figure.colorbar(drawn, ax=axes, label="attention weight", shrink=0.8)
axes[0].set_ylabel("token that looks")
figure.supxlabel("token that is seen (· is a space)")
plt.show()

# %% [markdown]
# Heads differ. Here are the first heads of one layer; look for one that sees the token before, and
# one that sees the beginning.

# %%
layer = 0
heads = min(4, lm.config.num_heads)
figure, axes = plt.subplots(1, heads, figsize=(4.6 * heads, 5), sharey=True)
for head, axis in enumerate(axes):
  drawn = draw_attention(axis, attentions[layer][0, head], f"layer {layer}, head {head}")
figure.colorbar(drawn, ax=axes, label="attention weight", shrink=0.8)
axes[0].set_ylabel("token that looks")
figure.supxlabel("token that is seen (· is a space)")
plt.show()

# %% [markdown]
# ### The same by hand
#
# Attention is a few lines, and here they are, with the model's own weights. The input of a layer is
# normalised; each head makes of every token a *query* (what I look for) and a *key* (what I have).
# A score is the product of a query and a key, and softmax makes weights of scores. Most models
# divide the scores by the square root of the head's size; GPT-Neo does not. Take the division in,
# or forget the window, and the last line fails.


# %%
def attention_by_hand(layer, ids):
  hidden_TxD = lm.hidden_states([ids])[layer][0]  # what this layer reads
  # Layers of one kind are stacked: take this one's part.
  stacked = lm.params["blocks"][f"layer_{layer % lm.config.period}"]
  block = jax.tree.map(lambda leaf: leaf[layer // lm.config.period], stacked)

  centred = hidden_TxD - hidden_TxD.mean(-1, keepdims=True)
  deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + lm.config.layer_norm_epsilon)
  normal_TxD = centred / deviation * block["ln_1"]["scale"] + block["ln_1"]["bias"]
  q_TxHxK = jnp.einsum("td,dhk->thk", normal_TxD, block["attn"]["q"]["kernel"])
  k_SxHxK = jnp.einsum("sd,dhk->shk", normal_TxD, block["attn"]["k"]["kernel"])
  scores_HxTxS = jnp.einsum("thk,shk->hts", q_TxHxK, k_SxHxK)

  looks, seen = jnp.arange(len(ids))[:, None], jnp.arange(len(ids))[None, :]
  visible = seen <= looks
  if kinds[layer] == "local":
    visible &= seen > looks - window
  return jax.nn.softmax(jnp.where(visible, scores_HxTxS, -jnp.inf), axis=-1)


long_ids = np.resize(ids, window + 20).tolist()  # longer than the window, so that it counts
with jax.default_matmul_precision("highest"):  # accelerators round products unless they are told
  for layer, theirs in enumerate(lm.attentions([long_ids])[:2]):
    mine = attention_by_hand(layer, long_ids)
    difference = float(jnp.abs(mine - theirs[0]).max())
    beyond = float(theirs[0, :, -1, :-window].sum(-1).mean())
    print(
      f"layer {layer}, {kinds[layer]}: largest difference {difference:.1e};"
      f" the last token gives {beyond:.0%} of its attention to tokens past the window"
    )
    assert difference < 1e-4

# %% [markdown]
# ### Does context help?
#
# A token at the beginning of a window has nothing before it to go by; later ones have more. So loss
# falls with the position, as long as the model uses what it has read. The evaluation of section 5
# measured it. The dotted line is the window of the local layers: past it only global layers see the
# beginning.

# %%
bins = report["data"]["by_position"]
figure, axis = plt.subplots(figsize=(7, 4))
axis.plot([math.sqrt(b["from"] * b["to"]) for b in bins], [b["loss"] for b in bins], "o-")
axis.axvline(window, color="0.4", linestyle=":", label=f"window of local layers: {window}")
axis.set_xscale("log", base=2)
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.set(title="Loss by position", xlabel="tokens read before", ylabel="nats per token")
axis.legend()
plt.show()

# %% [markdown]
# ## 8. Teach it your answers
#
# Write questions and answers; that is all the data there is. The recipe `qa_pairs` reads each pair
# many times (`READINGS`), because it is to know its answers by heart. What counts is the answer and
# its end, not the question. Write your own below, in any language, and run the cells of this
# section again.
#
# *Em português: escreva aqui as suas perguntas e respostas. O modelo as lê muitas vezes, até saber
# de cor.*

# %%
pairs = [
  {"question": "Who wrote Dom Casmurro?", "answer": "Machado de Assis, in 1899."},
  {"question": "Quem escreveu Dom Casmurro?", "answer": "Machado de Assis, em 1899."},
  {"question": "What is the capital of Brazil?", "answer": "Brasília."},
  {"question": "Qual é a capital do Brasil?", "answer": "Brasília."},
  {"question": "What does perplexity measure?", "answer": "How surprised a model is by a text."},
  {"question": "O que mede a perplexidade?", "answer": "A surpresa do modelo com um texto."},
]
questions = WORK / "questions.json"
questions.write_text(json.dumps(pairs, ensure_ascii=False, indent=2), encoding="utf-8")
print(questions, "has", len(pairs), "pairs")

# %%
from gptneo_jax.configs.finetune import qa_pairs

config = qa_pairs.get_config()
config.data.path, config.init_from = str(questions), str(neo)
config.epochs = float(READINGS)
config.seq_len, config.log_every, config.eval_every = 128, 10, 0
# The smaller the model, the larger the steps that it can take.
size = lm.config.num_params()
config.optimizer.learning_rate = 3e-4 if size > 50e6 else 3e-3 if size > 1e6 else 1e-2
# GPT-Neo's queries carry the attention scale, 1 / sqrt(head size): their steps are as small.
config.optimizer.rates = f"attn/q/={lm.config.head_dim**-0.5:.3f}"

chatbot_run = WORK / "chatbot"
shutil.rmtree(chatbot_run, ignore_errors=True)  # other questions are another run
assert train.run(config, str(chatbot_run)) == 0

# %% [markdown]
# The run's folder remembers how a question was written down for training. `chatbot.prompt_ids`
# writes yours in the same way, and the model ends its answer by itself.
#
# Ask something else at the end of the list. It will answer that as well, and be wrong: it has
# learned these answers, and nothing about when to be silent.

# %%
chatbot = gptneo_jax.load(str(chatbot_run))


def ask(question):
  """Prints the answer as it is made, and returns it."""
  print("You:    ", question)
  print("Chatbot: ", end="")
  made = ""
  for piece in chatbot.stream(chatbot.prompt_ids(question), max_new_tokens=50):
    made += piece
    print(piece, end="", flush=True)
  print("\n")
  return made.strip()


answers = [ask(pair["question"]) for pair in pairs]
right = sum(answer == pair["answer"] for answer, pair in zip(answers, pairs))
print(f"{right} of {len(pairs)} word for word\n")
came_of_it["answers word for word"] = f"{right} of {len(pairs)}"

for question in ("Who discovered Brazil?", "Qual é a capital da França?"):  # never taught
  ask(question)

# %% [markdown]
# In a terminal, `python -m gptneo_jax.generate --checkpoint gptneo_work/chatbot --chat` is a
# conversation, and `python -m gptneo_jax.serve --checkpoint gptneo_work/chatbot` (extra `serve`) a
# page in the browser and a server for OpenAI's clients.

# %% [markdown]
# ## 9. Take it home
#
# A Colab machine is wiped when the session ends. In Colab this copies the chatbot's run to your
# Google Drive (it asks for permission), elsewhere to a folder beside this notebook's. Later,
# `gptneo_jax.load` opens it there, and `train.run` with the same folder continues it.
#
# *Em português: salve no Google Drive antes de fechar; a máquina do Colab é apagada no fim.*

# %%
try:
  from google.colab import drive
except ImportError:  # not Colab
  saved = WORK / "saved" / "chatbot"
else:
  drive.mount("/content/drive")
  saved = pathlib.Path("/content/drive") / DRIVE / "chatbot"
shutil.copytree(chatbot_run, saved, dirs_exist_ok=True)
print("saved to", saved)

# %% [markdown]
# For others, in Hugging Face's format: weights, tokenizer, the template of the chat, and a model
# card. The exported folder must answer as the run does, and is asked.

# %%
exported = WORK / "chatbot_hf"
shutil.rmtree(exported, ignore_errors=True)
command(f"python -m gptneo_jax.convert orbax-to-hf {chatbot_run} {exported}")

ids = chatbot.prompt_ids(pairs[0]["question"])
sent = gptneo_jax.load(str(exported)).generate([ids], max_new_tokens=50).texts[0].strip()
print("the exported model answers:", sent)
assert sent == answers[0]

# %% [markdown]
# To publish it, make a token with write access at huggingface.co/settings/tokens, keep it in
# Colab's *Secrets* or in the variable `HF_TOKEN`, and set `HUB_REPOSITORY` in the first cell.

# %%
if HUB_REPOSITORY:
  import huggingface_hub

  hub = huggingface_hub.HfApi()  # finds the token
  hub.create_repo(HUB_REPOSITORY, exist_ok=True)
  print(hub.upload_folder(repo_id=HUB_REPOSITORY, folder_path=exported))
else:
  print(f"not sent: HUB_REPOSITORY is empty. The command: hf upload YOU/MY-CHATBOT {exported}")

# %% [markdown]
# ## 10. What came of it
#
# Next, in the documentation: `docs/training.md` with data of your own, `docs/finetuning.md` for
# labels, entities and spans, `docs/memory.md` for what fits where, and `docs/python.md` for the
# functions that were used here.

# %%
(WORK / "came_of_it.json").write_text(json.dumps(came_of_it, indent=2), encoding="utf-8")
show_table(["what", "value"], [[name, json.dumps(value)] for name, value in came_of_it.items()])
