"""The command `python -m gptneo_jax.evaluate`."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import zstandard

import gptneo_jax
from gptneo_jax import evaluate
from gptneo_jax.data import load_tokenizer
from gptneo_jax.data.documents import Document
from gptneo_jax.errors import UserError
from gptneo_jax.interop import peft_files
from tests.helpers import compiling

TEXTS = ["the quick brown fox jumps over the lazy dog " * 12, "ção 日本", "", "fox and dog " * 30]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  lm = gptneo_jax.init(
    gptneo_jax.ModelConfig(
      vocab_size=280, max_position_embeddings=32, hidden_size=16, num_layers=2, num_heads=2,
      window_size=8,
    )
  )  # fmt: skip
  documents = [Document(" ".join(TEXTS), "", "here")]
  lm.tokenizer = load_tokenizer("train", documents=documents, vocab_size=280)
  folder = tmp_path_factory.mktemp("evaluate") / "model"
  lm.save(str(folder))
  return str(folder)


@pytest.fixture
def corpus(tmp_path):
  lines = [
    json.dumps({"text": text, "meta": {"pile_set_name": ("Prose", "Verse")[i % 2]}})
    for i, text in enumerate(TEXTS)
  ]
  path = tmp_path / "test.jsonl.zst"
  path.write_bytes(zstandard.compress("\n".join(lines).encode()))
  return str(path)


def test_command(checkpoint, corpus, tmp_path):
  """From the shell; the figures are those of `lm.score`, and the report has their provenance."""
  output = tmp_path / "r.json"
  done = subprocess.run(
    [sys.executable, "-m", "gptneo_jax.evaluate", "--checkpoint", checkpoint, "--data", corpus,
     "--output", str(output), "--batch_size", "3"],
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "r.md").read_text() == done.stdout
  assert not (tmp_path / "r.json.partial").exists()
  report = json.loads(output.read_text())
  lm = gptneo_jax.load(checkpoint)
  scores = lm.score(TEXTS)
  results = report["results"]["data"]
  assert results["tokens"] == sum(score.tokens for score in scores)
  assert results["bits_per_byte"] == pytest.approx(
    sum(s.nll for s in scores) / sum(s.bytes for s in scores) / math.log(2), rel=1e-6
  )
  assert {"data", "data/Prose", "data/Verse"} == report["results"].keys()
  assert report["data"]["windows"] == "disjoint windows of 32 tokens"
  assert list(report["data"]["sha256"]) == [corpus]
  assert report["model"] == lm.config.to_dict() and report["checkpoint"]["step"] == 0
  assert {"config.json", "tokenizer.json"} < report["checkpoint"]["sha256"].keys()
  assert any(name.startswith("0/params/") for name in report["checkpoint"]["sha256"])
  assert report["arguments"]["batch_size"] == 3 and report["versions"]["jax"]


def run(checkpoint, tmp_path, *arguments):
  output = str(tmp_path / "out.json")
  assert evaluate.main(["--checkpoint", checkpoint, "--output", output, *arguments]) == 0
  return json.loads((tmp_path / "out.json").read_text())


def test_strided_and_compared(checkpoint, corpus, tmp_path, capsys):
  disjoint = run(checkpoint, tmp_path, "--data", corpus)
  (tmp_path / "out.json").rename(tmp_path / "disjoint.json")
  strided = run(checkpoint, tmp_path, "--data", corpus, "--stride", "4", "--seq_len", "16")
  assert strided["data"]["windows"] == "windows of 16 tokens, strided by 4"
  assert strided["results"]["data"]["tokens"] == disjoint["results"]["data"]["tokens"]
  assert strided["results"]["data"]["loss"] != disjoint["results"]["data"]["loss"]
  assert strided["data"]["text_sha256"] == disjoint["data"]["text_sha256"]
  capsys.readouterr()
  both = [str(tmp_path / name) for name in ("disjoint.json", "out.json")]
  output = tmp_path / "both.json"
  assert evaluate.main(["--compare", *both, "--output", str(output)]) == 0
  shown = capsys.readouterr().out
  assert (tmp_path / "both.md").read_text() == shown
  assert [entry["file"] for entry in json.loads(output.read_text())["compared"]] == both
  assert (tmp_path / "both.png").exists()
  assert "disjoint windows of 32 tokens" in shown and "strided by 4" in shown
  assert f"{strided['results']['data']['loss']:.4f}" in shown


def test_output_has_a_default_that_overwrites_nothing(
  checkpoint, corpus, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  command = ["--checkpoint", checkpoint, "--data", corpus, "--limit", "1"]
  for _ in range(2):
    assert evaluate.main(command) == 0
  assert "written to evaluation_2.json" in capsys.readouterr().err
  assert evaluate.main(["--compare", "evaluation.json", "evaluation_2.json"]) == 0
  written = {path.name for path in tmp_path.iterdir()}
  for name in ("evaluation", "evaluation_2", "comparison"):
    assert {f"{name}.json", f"{name}.md", f"{name}.png"} < written


def test_nothing_measured_is_an_error(checkpoint, tmp_path):
  """The error has the reason, and no report is written."""
  pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness")
  output = tmp_path / "r.json"
  with pytest.raises(UserError, match=r"nothing was measured: piqa_local: .*piqa_val"):
    evaluate.main(
      ["--checkpoint", checkpoint, "--tasks", "piqa_local", "--task_data", str(tmp_path),
       "--output", str(output)]
    )  # fmt: skip
  assert not output.exists()


def test_a_model_whose_numbers_are_not_finite(checkpoint, corpus, tmp_path):
  pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness")
  lm = gptneo_jax.load(checkpoint)
  lm.params["ln_f"]["scale"] = lm.params["ln_f"]["scale"].at[0].set(math.nan)
  folder = str(tmp_path / "broken")
  lm.save(folder)
  with pytest.raises(UserError, match="losses are not finite"):
    run(folder, tmp_path, "--data", corpus)
  with pytest.raises(UserError, match=r"nothing was measured: stdlib_cloze: .* is nan"):
    run(folder, tmp_path, "--tasks", "stdlib_cloze", "--limit", "2")
  assert not (tmp_path / "out.json").exists()


def test_adapter_and_tokenizer_of_other_folders(checkpoint, corpus, tmp_path):
  """The figures are those of `load` with the same adapter and tokenizer; the report names both."""
  lm = gptneo_jax.load(checkpoint)
  random = np.random.default_rng(0)
  factors = {"lora_a": random.normal(size=(1, 16, 2)), "lora_b": random.normal(size=(1, 2, 2, 8))}
  pair = {name: factor.astype(np.float32) for name, factor in factors.items()}
  pair["lora_scale"] = np.full(1, 4.0, np.float32)
  places = {f"layer_{i}": {"attn": {"q": pair}} for i in range(2)}
  peft_files.write_adapter(tmp_path / "lora", lm.config, {"blocks": places})
  lm.tokenizer.save_pretrained(tmp_path / "words")
  lm.tokenizer = None
  lm.save(str(tmp_path / "bare"))
  expected = gptneo_jax.load(checkpoint, adapter=str(tmp_path / "lora")).score(TEXTS)
  found = run(
    str(tmp_path / "bare"), tmp_path, "--data", corpus, "--adapter", str(tmp_path / "lora"),
    "--tokenizer", str(tmp_path / "words"),
  )  # fmt: skip
  loss = sum(score.nll for score in expected) / sum(score.tokens for score in expected)
  assert found["results"]["data"]["loss"] == pytest.approx(loss, rel=1e-6)
  plain = gptneo_jax.load(checkpoint).score(TEXTS)
  assert abs(loss - sum(s.nll for s in plain) / sum(s.tokens for s in plain)) > 1e-3
  assert "adapter/adapter_model.safetensors" in found["checkpoint"]["sha256"]
  assert found["tokenizer"] == run(checkpoint, tmp_path, "--data", corpus)["tokenizer"]
  assert (tmp_path / "out.md").read_text().startswith("# model\n")


ON_FOUR_DEVICES = """
import sys
import jax
from gptneo_jax import evaluate
assert jax.device_count() == 4
*common, folder = sys.argv[1:]
evaluate.main([*common, "--output", f"{folder}/rows.json"])
evaluate.main([*common, "--output", f"{folder}/both.json", "--mesh", "data=1,fsdp=2,tensor=2"])
"""


def test_four_devices_give_the_numbers_of_one(checkpoint, corpus, tmp_path):
  common = ["--checkpoint", checkpoint, "--data", corpus, "--stride", "10", "--batch_size", "3"]
  done = subprocess.run(
    [sys.executable, "-c", ON_FOUR_DEVICES, *common, str(tmp_path)],
    env=os.environ | compiling.on_devices(4),
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  one = run(checkpoint, tmp_path, *common)
  assert one["hardware"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
  for name, mesh in (("rows", (4, 1, 1)), ("both", (1, 2, 2))):
    four = json.loads((tmp_path / f"{name}.json").read_text())
    assert tuple(four["hardware"]["mesh"].values()) == mesh
    for part in ("all", "Prose", "Verse"):
      key = "data" if part == "all" else f"data/{part}"
      assert four["results"][key] == pytest.approx(one["results"][key], rel=1e-6)
    for bins in ("by_position", "calibration"):
      for ours, theirs in zip(four["data"][bins], one["data"][bins], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_other_sources(checkpoint, tmp_path):
  """A text file, another text key, --limit, and the data of a training config."""
  text = tmp_path / "book.txt"
  text.write_text(TEXTS[0])
  book = run(checkpoint, tmp_path, "--data", str(text))
  assert book["results"]["data"]["bytes"] == len(TEXTS[0])
  records = tmp_path / "records"
  records.write_text(json.dumps({"content": TEXTS[0]}) + "\n" + json.dumps({"content": "x"}))
  same = run(
    checkpoint, tmp_path, "--data", str(records), "--source", "jsonl", "--text_key", "content",
    "--limit", "1",
  )  # fmt: skip
  assert same["results"]["data"] == book["results"]["data"]
  assert same["data"]["text_sha256"] != book["data"]["text_sha256"]  # the subset's name differs
  config = tmp_path / "config.py"
  config.write_text(
    "from gptneo_jax import config\nfrom gptneo_jax.training import run_config\n"
    "def get_config(arg=None):\n"
    "  c = run_config.base(config.PRESETS['neo_125m'])\n"
    f"  c.data.update(source='text', path='x', validation_path={str(text)!r})\n"
    "  return c\n"
  )
  configured = run(checkpoint, tmp_path, "--data", f"config:{config}")
  assert configured["results"]["data"] == book["results"]["data"]
  assert configured["data"]["split"] == "validation"


def test_tasks_and_their_items(checkpoint, corpus, tmp_path, capsys):
  pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness")
  report = run(
    checkpoint, tmp_path, "--tasks", "stdlib_cloze", "--limit", "3", "--log_samples",
    "--check_overlap", corpus,
  )  # fmt: skip
  assert 0 <= report["results"]["stdlib_cloze"]["acc"] <= 1
  assert "\r" not in capsys.readouterr().err  # no progress bars off a terminal
  assert report["tasks"]["versions"].keys() == {"stdlib_cloze"}
  lines = (tmp_path / "out.samples.jsonl").read_text().splitlines()
  assert [json.loads(line)["task"] for line in lines] == ["stdlib_cloze"] * 3
  assert report["overlap"]["items"] == 3 and report["overlap"]["overlapping"] == 0
  assert "| stdlib_cloze " in (tmp_path / "out.md").read_text()


def test_answers_and_overlap(checkpoint, corpus, tmp_path):
  pytest.importorskip("sacrebleu", reason="answers need its BLEU")
  questions = tmp_path / "questions.jsonl"
  rows = [
    {"prompt": "the dog", "reference": "runs"},
    {"prompt": TEXTS[0][:110], "reference": "fox"},
  ]
  questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
  report = run(
    checkpoint, tmp_path, "--answers", str(questions), "--max_new_tokens", "4", "--judge",
    checkpoint, "--check_overlap", corpus, "--limit", "1",
  )  # fmt: skip
  assert {"exact_match", "f1", "bleu"} < report["results"]["answers"].keys()
  assert report["overlap"]["items"] == 1
  whole = run(checkpoint, tmp_path, "--data", corpus, "--check_overlap", corpus)
  found = {entry["item"] for entry in whole["overlap"]["overlaps"]}
  assert found == {f"{corpus}:1", f"{corpus}:4"}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "nothing to evaluate; give --data"),
    (["--data", "nowhere/*.jsonl"], r"nowhere/\*\.jsonl: no file matches"),
    (["--data", "{corpus}", "--seq_len", "33"], "33 is more than the model's 32 positions"),
    (["--data", "{corpus}", "--stride", "33"], "--stride is 33; it is 1 to 32"),
    (["--data", "{corpus}", "--stride", "0"], "--stride is 0; it is 1 to 32"),
    (["--data", "{corpus}", "--limit", "0"], "--limit is 0"),
    (["--data", "{corpus}", "--split", "test"], "--split is for stdlib and config:FILE"),
    (["--data", "{corpus}", "--text_key", "body"], "no text: field 'body' is missing"),
    (["--data", "{corpus}", "--mesh", "rows=2"], "is not of the form data=2,fsdp=1,tensor=1"),
    (["--data", "{corpus}", "--mesh", "data=64"], "is of 64 devices"),
    (["--data", "{empty}"], r"empty.jsonl holds no document \(skipped: 1 x empty text\)"),
    (["--data", "{corpus}", "--judge", "m"], "--judge is for --answers"),
    (["--data", "{corpus}", "--num_fewshot", "0"], "--num_fewshot is for --tasks"),
    (["--data", "{corpus}", "--log_samples"], "--log_samples is for --tasks"),
    (["--tasks", "quick", "--split", "test"], "--split is for --data"),
    (["--data", "stdlib", "--text_key", "body"], "--text_key says how files are read"),
    (["--data", "{corpus}", "--quantization", "w8a8"], "measured with int8 weights alone"),
    (["--data", "{corpus}", "--quantise", "int8"], "did you mean --quantization"),
    (["--data", "{corpus}", "--output", "{tmp_path}/nowhere/r.json"], "there is no folder"),
    (["--data", "{corpus}", "--output", "{tmp_path}/r"], "NAME.json"),
    (["--compare", "{tmp_path}/nowhere.json"], r"nowhere\.json cannot be read"),
    (["--data", "{corpus}", "--checkpoint", "{tmp_path}/nowhere"], "no such folder"),
  ],
)  # fmt: skip
def test_mistakes(checkpoint, corpus, tmp_path, arguments, message):
  empty = tmp_path / "empty.jsonl"
  empty.write_text(json.dumps({"text": ""}) + "\n")
  places = {"corpus": corpus, "tmp_path": tmp_path, "empty": empty}
  before = ["--checkpoint", checkpoint, "--output", str(tmp_path / "r.json")]
  with pytest.raises(UserError, match=message):
    evaluate.main([*before, *(argument.format(**places) for argument in arguments)])
  assert not (tmp_path / "r.json").exists()


def test_a_tokenizer_of_another_model_is_refused(checkpoint, corpus, tmp_path):
  lm = gptneo_jax.load(checkpoint)
  lm.resize_vocabulary(200)
  folder = str(tmp_path / "other")
  lm.save(folder)
  with pytest.raises(UserError, match=r"another model: the tokenizer .* 280 .* 200$"):
    run(folder, tmp_path, "--data", corpus)
