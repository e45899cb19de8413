"""Each recipe of configs/finetune runs as its docstring says, on small files and a small model."""

import json
import pathlib

import pytest

import gptneo_jax
from gptneo_jax import train
from gptneo_jax.training import config_file, run_config
from tests.helpers.packed_checks import small_model
from tests.helpers.small_tokenizers import trained_tokenizer

RECIPES = sorted(
  path.stem
  for path in pathlib.Path(__file__).parents[2].joinpath("configs/finetune").glob("[a-z]*.py")
)
TEXTS = [
  "the lazy dog",
  "Olá, mundo",
  "fox",
  "The quick brown fox",
  "e a ação",
  "jumps",
  "dog",
  "o",
]


def rows(make) -> list:
  return [make(n, TEXTS[n % 8] + f" {n}") for n in range(32)]


def conversation(n: int, text: str) -> dict:
  roles = ("user", "assistant") * 2
  return {"messages": [{"role": role, "content": f"{text} {k}"} for k, role in enumerate(roles)]}


def table(lines: list[list[str]], separator: str) -> str:
  return "\n".join(separator.join(line) for line in lines)


# The file of each recipe, by name and content.
FILES = {
  "chat": ("chat.json", rows(conversation)),
  "clm": ("news.txt", table(rows(lambda n, text: [text * 3]), "")),
  "entailment": (
    "pairs.csv",
    table([["premise", "hypothesis", "label"], *rows(lambda n, t: [t, TEXTS[n % 3], str(n % 2)])],
          ";").replace(",", "").replace(";", ","),
  ),
  "instruct": (
    "alpaca.json",
    rows(lambda n, text: {"instruction": text, "input": "x" * (n % 2), "output": TEXTS[n % 3]}),
  ),
  "intents": (
    "intents.csv",
    table([["text", "category"], *rows(lambda n, t: [t.replace(",", ""), "abc"[n % 3]])], ","),
  ),
  "multilabel": (
    "labels.json",
    rows(lambda n, text: {"text": text, "intents": ["a", "b"][: 1 + n % 2]} if n % 5 else
         {"text": text}),
  ),
  "multiple_choice": (
    "arc.jsonl",
    "\n".join(
      json.dumps(
        {
          "question": text, "answerKey": "AB"[n % 2],
          "choices": {"text": TEXTS[: 2 + n % 2], "label": list("ABC")[: 2 + n % 2]},
        }
      )
      for n, text in rows(lambda n, text: (n, text))
    ),
  ),
  "ner": (
    "train.conll",
    "\n\n".join(f"{text.split()[0]}\tB-X\nis\tO" for _, text in rows(lambda n, text: (n, text))),
  ),
  "qa_pairs": ("qa.json", rows(lambda n, text: {"question": text, "answer": TEXTS[n % 3]})),
  "similarity": (
    "sts.csv",
    table(rows(lambda n, t: [t, TEXTS[n % 3], f"{n % 5}.5"]), ";")
    .replace(",", "")
    .replace(";", ","),
  ),
  "spam": ("spam.tsv", table(rows(lambda n, text: ["ham" if n % 3 else "spam", text]), "\t")),
  "squad": (
    "squad.json",
    {
      "data": [
        {
          "paragraphs": [
            {
              "context": f"{text} and {n}",
              "qas": [
                {
                  "id": str(n), "question": f"what {n}?",
                  "answers": [{"text": text[:3], "answer_start": 0}],
                }
              ],
            }
          ]
        }
        for n, text in rows(lambda n, text: (n, text))
      ]
    },
  ),
}  # fmt: skip


def test_each_recipe_is_here():
  assert RECIPES == sorted(FILES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
  """A small model and its tokenizer, to start from."""
  folder = tmp_path_factory.mktemp("weights") / "model"
  lm = gptneo_jax.init(small_model("lm", 320), seed=0)
  lm.tokenizer = trained_tokenizer()
  lm.save(str(folder))
  return str(folder)


def run(recipe: str, arg: str, weights: str, folder: pathlib.Path) -> pathlib.Path:
  name, content = FILES[recipe]
  text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
  (folder / name).write_text(text, encoding="utf-8")
  config = config_file.load(f"configs/finetune/{recipe}.py{arg}").unlock()
  config.update(init_from=weights, seq_len=64, batch_size=4, steps=2, log_every=1)
  config.epochs = min(config.epochs, 1.0)
  config.grad_accumulation, config.model.remat = 1, "none"
  config.data.update(path=str(folder / name), on_too_long="truncate_left")
  if config.data.validation_fraction:
    config.data.validation_fraction = 0.2
  assert train.run(config.lock(), str(folder / "run")) == 0
  return folder / "run"


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_runs_and_its_folder_is_of_use(recipe, weights, tmp_path):
  folder = run(recipe, "", weights, tmp_path)
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["train_loss"] > 0 and summary["epoch"] > 0
  lm = gptneo_jax.load(str(folder))
  if recipe == "clm":
    assert lm.task is None
  elif lm.has_template:
    assert lm.generate([lm.prompt_ids("fox")[-32:]], max_new_tokens=2).texts
  else:
    assert (folder / "task.json").exists() and lm.task is not None


@pytest.mark.parametrize(("recipe", "arg"), [("spam", ":lora"), ("qa_pairs", ":qlora")])
def test_adapters(recipe, arg, weights, tmp_path, capsys):
  folder = run(recipe, arg, weights, tmp_path)
  assert "scale = alpha / r = 2" in capsys.readouterr().out
  assert (folder / "adapter" / "adapter_model.safetensors").exists()
  assert gptneo_jax.load(str(folder)).config.num_layers == 2


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arg", ["", ":lora", ":qlora"])
def test_its_docstring_has_its_command(recipe, arg):
  config = config_file.load(f"configs/finetune/{recipe}.py{arg}")
  run_config.check_keys(config)
  assert (config.lora.rank > 0) == bool(arg) and (config.lora.base != "") == (arg == ":qlora")
  source = pathlib.Path("configs/finetune", f"{recipe}.py").read_text(encoding="utf-8")
  assert f"python -m gptneo_jax.train --config configs/finetune/{recipe}.py" in source
