"""lm-evaluation-harness over our model and over its own class for PyTorch models, HFLM.

  python experiments/bench_harness.py TASK_DATA [--requests 96] [--rounds 3]

GPT-Neo 125M with random weights, float32, the same in both; batch 8; every kind of request: the
first of LAMBADA, HellaSwag and PIQA from the folder TASK_DATA (docs/evaluation_tasks.md), rolling
perplexity of the first 4,096 tokens of Wikitext, 8 continuations of 32 tokens. A round answers them
once with each; tokenising is in the time, compiling is not. Then 1,000 requests of the three tasks,
mixed, are laid out in batches, and the programs that they need are counted.
"""

import argparse
import functools
import pathlib
import tempfile
from types import SimpleNamespace

import bench
import numpy as np
import peer
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import gptneo_jax
from gptneo_jax.config import PRESETS
from gptneo_jax.evals import local_tasks, scoring
from gptneo_jax.evals.lm_eval_model import LmEvalModel

TASKS = ("lambada_local", "hellaswag_local", "piqa_local")
BATCH = 8
ROLLING_TOKENS, NEW_TOKENS = 4096, 32
MANY = 1000


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("task_data")
  parser.add_argument("--tokenizer", help="folder of GPT-2's; default: the hub's")
  parser.add_argument("--requests", type=int, default=96)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  torch.manual_seed(0)
  model = peer.gpt_neo(PRESETS["neo_125m"]).eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    lm = gptneo_jax.load(folder)
  lm.tokenizer = transformers.AutoTokenizer.from_pretrained(
    args.tokenizer or "openai-community/gpt2"
  )
  models = {
    "ours": LmEvalModel(lm, BATCH),
    "HFLM": HFLM(pretrained=model, tokenizer=lm.tokenizer, batch_size=BATCH, device=peer.DEVICE),
  }
  requests = {
    name: asked(name, args.task_data, lm, args.requests)[: args.requests] for name in TASKS
  }
  prompts = [request.args[0] for request in requests["lambada_local"][:BATCH]]
  requests["rolling"] = [SimpleNamespace(args=(wikitext(lm, args.task_data),))]
  settings = {"until": ["<none>"], "max_gen_toks": NEW_TOKENS}
  requests["generation"] = [SimpleNamespace(args=(prompt, dict(settings))) for prompt in prompts]
  kinds = dict.fromkeys(TASKS, "loglikelihood")
  kinds |= {"rolling": "loglikelihood_rolling", "generation": "generate_until"}
  answers: dict[tuple[str, str], list] = {}

  def call(who: str, name: str):
    method = getattr(models[who], kinds[name])
    answers[who, name] = method(requests[name], disable_tqdm=True)

  functions = {
    f"{name}, {who}": functools.partial(call, who, name) for name in kinds for who in models
  }
  times = bench.alternate(functions, args.rounds)
  results = {
    "requests": {name: len(rows) for name, rows in requests.items()},
    "largest_difference": {
      name: difference(answers["ours", name], answers["HFLM", name]) for name in TASKS
    },
    "same_texts": answers["ours", "generation"] == answers["HFLM", "generation"],
    "seconds": times,
    "speedup": {name: bench.ratio(times, f"{name}, HFLM", f"{name}, ours") for name in kinds},
  }
  total = {who: sum(times[f"{name}, {who}"]["median"] for name in kinds) for who in models}
  results["speedup"]["all"] = total["HFLM"] / total["ours"]
  results["programs_compiled"] = models["ours"].compiled_shapes
  results[f"programs_for_{MANY}_requests"] = programs(lm, models["ours"], args.task_data)
  bench.record("bench_harness", results)


def asked(name: str, task_data: str, lm, items: int) -> list:
  """The requests of the first items of a task."""
  config = local_tasks.config(name, task_data, lm.tokenizer, lm.config.max_position_embeddings)
  task = TaskManager(include_defaults=False).load([config])["tasks"][name]
  task.set_config(key="num_fewshot", value=0)
  task.build_all_requests(limit=items, rank=0, world_size=1)
  return task.instances


def wikitext(lm, task_data: str) -> str:
  text = pathlib.Path(task_data, "wikitext2_test.txt").read_text(encoding="utf-8")
  return lm.tokenizer.decode(lm.tokenizer(text[: 8 * ROLLING_TOKENS]).input_ids[:ROLLING_TOKENS])


def difference(ours: list, theirs: list) -> float:
  return float(np.abs(np.subtract([x for x, _ in ours], [x for x, _ in theirs])).max())


def programs(lm, ours: LmEvalModel, task_data: str) -> int:
  """How many programs MANY requests of the tasks, mixed, need: counted, not run."""
  rows = [row for name in TASKS for row in asked(name, task_data, lm, MANY)]
  chosen = np.random.default_rng(0).permutation(len(rows))[:MANY]
  pairs = [ours._encode_pair(*rows[i].args) for i in chosen]
  asks = [scoring.ScoringRequest((*context, *ids)[:-1], tuple(ids)) for context, ids in pairs]
  scorer = scoring.Scorer(lm, BATCH)
  return len({scorer.shape(batch) for batch in scorer.pack(asks)})


if __name__ == "__main__":
  main()
