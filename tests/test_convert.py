import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from gptneo_jax import cli, convert, engine, interop
from gptneo_jax.checkpoints.folder import load_config
from gptneo_jax.checkpoints.step_folders import saved_steps
from gptneo_jax.errors import UserError
from gptneo_jax.interop import peft_files, verification
from tests.helpers import hf_folders


@pytest.fixture
def hf(tmp_path):
  """A small model with a tokenizer."""
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  hf_folders.word_tokenizer(tmp_path / "hf")
  return name


def fails(capsys, *arguments) -> str:
  """The one line on standard error of a command that must exit with status 1."""
  with pytest.raises(SystemExit) as caught:
    cli.guarded(lambda: convert.main([str(argument) for argument in arguments]))
  assert caught.value.code == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  return lines[0]


def test_there_and_back(tmp_path, hf, capsys):
  ours, back = str(tmp_path / "ours"), str(tmp_path / "back")
  assert convert.main(["hf-to-orbax", hf, ours, "--dtype", "bfloat16"]) == 0
  said = capsys.readouterr()
  assert "gpt_neo" in said.out
  assert "in bfloat16, step 0" in said.out
  assert "100%" in said.err  # the progress bar
  assert saved_steps(ours) == [0]
  assert convert.main(["orbax-to-hf", ours, back, "--step", "0", "--dtype", "float32"]) == 0
  found = hf_folders.load(tmp_path / "back")
  expected = hf_folders.tensors(dtype="bfloat16")
  hf_folders.assert_same(found, {n: a.astype("float32") for n, a in expected.items()})
  card = (tmp_path / "back/README.md").read_text()
  assert "library_name: transformers" in card
  assert "Checkpoint 0 of a gptneo_jax folder" in card
  assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]


def test_an_adapter_is_merged_on_the_way(tmp_path, hf):
  """Both ways, with the weights that `load` gives with it."""
  draw = lambda *shape: np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
  pair = {"lora_a": draw(2, 24, 3), "lora_b": draw(2, 3, 4, 6)}
  q = {"attn": {"q": {**pair, "lora_scale": np.full(2, 2.0, np.float32)}}}
  factors = {"blocks": {"layer_0": q, "layer_1": q}}
  adapter, plain = str(tmp_path / "adapter"), str(tmp_path / "plain")
  peft_files.write_adapter(adapter, interop.open_hf(hf).config, factors)
  convert.main(["hf-to-orbax", hf, str(tmp_path / "in"), "--adapter", adapter])
  convert.main(["hf-to-orbax", hf, plain])
  convert.main(["orbax-to-hf", plain, str(tmp_path / "out"), "--adapter", adapter])
  expected = engine.load(hf, adapter=adapter).params
  for folder in ("in", "out"):
    found = engine.load(str(tmp_path / folder)).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
  q = [engine.load(f).params["blocks"]["layer_1"]["attn"]["q"]["kernel"] for f in (hf, plain)]
  assert np.abs(q[0] - expected["blocks"]["layer_1"]["attn"]["q"]["kernel"]).min(0).max() > 1
  np.testing.assert_array_equal(*q)


def test_a_tokenizer_from_elsewhere(tmp_path, hf, capsys):
  """Both ways, for a source that has none or another."""
  other = tmp_path / "other"
  hf_folders.word_tokenizer(other, 50)
  ours, back = tmp_path / "ours", tmp_path / "back"
  assert convert.main(["hf-to-orbax", hf, str(ours), "--tokenizer", str(other)]) == 0
  assert (ours / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
  assert convert.main(["orbax-to-hf", str(ours), str(back), "--tokenizer", hf]) == 0
  assert (back / "tokenizer.json").read_bytes() == (tmp_path / "hf/tokenizer.json").read_bytes()
  capsys.readouterr()
  message = fails(capsys, "hf-to-orbax", hf, tmp_path / "no", "--tokenizer", tmp_path / "nowhere")
  assert "nowhere': no such folder" in message
  assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
  "file, content, words",
  [
    ("tokenizer.json", lambda text: text[:300], "tokenizer.json: damaged"),
    ("tokenizer.json", lambda text: "", "tokenizer.json: the file is empty"),
    ("tokenizer.json", lambda _: "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("tokenizer.json", lambda text: text.replace("WordLevel", "Magic"), "cannot be loaded"),
    ("tokenizer_config.json", lambda _: '{"a": ', "tokenizer_config.json: damaged"),
    ("tokenizer_config.json", lambda _: "[]", "cannot be loaded"),
  ],
)
def test_damaged_tokenizer_files_are_one_line(tmp_path, hf, capsys, file, content, words):
  path = tmp_path / "hf" / file
  path.write_text(content(path.read_text()))
  assert words in fails(capsys, "hf-to-orbax", hf, tmp_path / "ours")
  assert not (tmp_path / "ours").exists()
  with pytest.raises(UserError, match=words):
    engine.load(hf).tokenizer  # noqa: B018


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_vocabulary_of_word_pieces_is_a_tokenizer(tmp_path, file):
  """vocab.txt alone, as models with BERT's tokenizer have it; a config names the class."""
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), hf_folders.tensors())
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pan", "##ther", "a"]
  (tmp_path / "hf/vocab.txt").write_text("\n".join(words))
  with pytest.raises(UserError, match="GPT2Tokenizer reads none of its files: name the"):
    interop.hf_to_orbax(name, tmp_path / "no")
  (tmp_path / "lfs").mkdir()
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
  (tmp_path / "lfs/vocab.txt").write_text(pointer)  # of which a vocabulary of three could be made
  with pytest.raises(UserError, match=r"vocab\.txt is a Git LFS pointer"):
    interop.hf_to_orbax(name, tmp_path / "no", tokenizer_from=str(tmp_path / "lfs"))
  path = tmp_path / "hf" / file
  fields = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**fields, "tokenizer_class": "BertTokenizer"}))
  interop.hf_to_orbax(name, tmp_path / "ours")
  for folder in (name, str(tmp_path / "ours")):
    assert engine.load(folder).tokenizer("A panther").input_ids == [2, 7, 5, 6, 3]


def test_mistakes_are_one_line(tmp_path, hf, capsys):
  nowhere, full = tmp_path / "nowhere", tmp_path / "full"
  full.mkdir()
  (full / "notes").write_text("mine")
  assert "not empty" in fails(capsys, "hf-to-orbax", hf, full)
  assert "no such folder" in fails(capsys, "hf-to-orbax", nowhere, tmp_path / "ours")
  assert "no config.json" in fails(capsys, "orbax-to-hf", full, tmp_path / "back")
  (tmp_path / "hf/tokenizer.json").unlink()
  assert "--no_tokenizer" in fails(capsys, "hf-to-orbax", hf, tmp_path / "ours")
  assert "no such folder" in fails(capsys, "verify", hf, nowhere)
  assert "must be a gptneo_jax checkpoint folder" in fails(capsys, "verify", hf, hf)
  convert.main(["hf-to-orbax", hf, str(tmp_path / "ours"), "--no_tokenizer"])
  capsys.readouterr()
  assert "no checkpoint 3" in fails(
    capsys, "orbax-to-hf", tmp_path / "ours", tmp_path / "back", "--step", 3
  )
  message = fails(capsys, "verify", hf, tmp_path / "ours", "--length", 33)
  assert "at most the model's 32 positions" in message


@pytest.mark.processes
def test_as_a_program(tmp_path, hf):
  def run(*arguments):
    command = [sys.executable, "-m", "gptneo_jax.convert", *arguments]
    return subprocess.run(command, capture_output=True, text=True)

  helped = run("--help")
  assert helped.returncode == 0
  for command in ("hf-to-orbax", "orbax-to-hf", "verify"):
    assert f"python -m gptneo_jax.convert {command}" in helped.stdout
  (tmp_path / "hf/config.json").write_text(json.dumps(hf_folders.config(model_type="llama")))
  failed = run("hf-to-orbax", hf, str(tmp_path / "ours"))
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: ")
  assert failed.stderr.strip().count("\n") == 0
  assert "model_type is 'llama'; supported are gpt2 and gpt_neo" in failed.stderr


@pytest.mark.processes
def test_safetensors_need_no_torch(tmp_path, hf):
  code = f"""
import importlib.machinery, sys
installed = importlib.machinery.PathFinder
class WithoutTorch:
  find_distributions = installed.find_distributions
  def find_spec(name, *where):
    return None if name.split(".")[0] == "torch" else installed.find_spec(name, *where)
sys.meta_path = [WithoutTorch if finder is installed else finder for finder in sys.meta_path]
from gptneo_jax import convert
convert.main(["hf-to-orbax", {hf!r}, {str(tmp_path / "ours")!r}])
convert.main(["orbax-to-hf", {str(tmp_path / "ours")!r}, {str(tmp_path / "back")!r}])
assert "torch" not in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  hf_folders.assert_same(hf_folders.load(tmp_path / "back"), hf_folders.tensors())


@pytest.mark.parity
def test_verify(tmp_path, capsys):
  pytest.importorskip("torch")
  weights = {n: 0.1 * a for n, a in hf_folders.tensors().items()}
  name = hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  ours = str(tmp_path / "ours")
  convert.main(["hf-to-orbax", name, ours, "--no_tokenizer"])
  assert convert.main(["verify", name, ours]) == 0
  report = json.loads((tmp_path / "ours" / interop.REPORT).read_text())
  assert report["max_abs_difference"] < 1e-5
  assert report["greedy_agreement"] == 1.0
  assert (report["length"], report["window"], report["step"]) == (28, 6, 0)
  assert 0 < report["padding"] < 28 - 6
  assert {"jax", "torch", "transformers", "gptneo_jax"} <= report["versions"].keys()
  assert "greedy agreement 100.00%, at 28 tokens" in capsys.readouterr().out
  assert convert.main(["verify", ours, name]) == 0  # the report then goes to the other folder
  assert (tmp_path / "hf" / interop.REPORT).is_file()
  weights["transformer.wpe.weight"][:, 3] += 0.05
  hf_folders.save(tmp_path / "hf", hf_folders.config(), weights)
  assert convert.main(["verify", name, ours]) == 1
  assert "error: the difference is above 0.0001" in capsys.readouterr().err


@pytest.mark.parity
def test_verify_fails_where_numbers_are_not_finite(tmp_path, capsys):
  """Also where both sides agree in it, and where only the row with padding meets it."""
  pytest.importorskip("torch")
  weights = {n: 0.1 * a for n, a in hf_folders.tensors().items()}
  weights["lm_head.weight"] = weights["transformer.wte.weight"].copy()
  fields = hf_folders.config(tie_word_embeddings=False)
  name = hf_folders.save(tmp_path / "hf", fields, weights)
  convert.main(["hf-to-orbax", name, str(tmp_path / "sound"), "--no_tokenizer"])
  ids_BxT, mask_BxT = verification._inputs(load_config(tmp_path / "sound"), 28)
  token = next(i for i in ids_BxT[1][mask_BxT[1] == 1] if i not in ids_BxT[0])
  weights["transformer.wte.weight"][token, 3] = np.nan
  hf_folders.save(tmp_path / "hf", fields, weights)
  convert.main(["hf-to-orbax", name, str(tmp_path / "broken"), "--no_tokenizer"])
  for folder in ("sound", "broken"):
    capsys.readouterr()
    assert convert.main(["verify", name, str(tmp_path / folder)]) == 1
    said = capsys.readouterr()
    lost = 61 * mask_BxT[1].sum()  # keys are multiplied by 0 before they are seen: all of the row
    assert f"{lost} outputs are not finite" in said.err
    assert ("; wte of the checkpoint holds a NaN" in said.err) == (folder == "broken")
    assert f"greedy agreement {28 / mask_BxT.sum():.2%}" in said.out
    report = json.loads(
      (tmp_path / folder / interop.REPORT).read_text(),
      parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert report["not_finite"] == lost
    assert report["max_abs_difference"] < 1e-5
