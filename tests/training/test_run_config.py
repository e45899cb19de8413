"""The settings of a run: none that is not known, and configs that work from any folder."""

import pathlib
import subprocess
import sys

import pytest
import setuptools
from absl import flags
from ml_collections import ConfigDict, config_flags

from gptneo_jax.checkpoints.folder import save_config
from gptneo_jax.config import PRESETS, ModelConfig
from gptneo_jax.errors import UserError
from gptneo_jax.training import adopt_model, config_file, parse_config, run_config


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("c.grad_accumulaton = 8", "unknown setting grad_accumulaton; did you mean grad_accumulation?"),
    ("c.eval.docments = 3", "unknown setting docments; did you mean eval.documents?"),
    ("c.optimizer.lr = 1e-3", "unknown setting lr; did you mean optimizer.learning_rate?"),
    ("c.data.update(num_stream=4)", "unknown setting num_stream; did you mean data.num_streams?"),
    ("c.steps = 'many'", "steps takes a value of type int"),
    ("c.model.dtype = jax.numpy.bfloat16", "dtype takes a value of type str, such as 'bfloat16'"),
    ("c.steps = undefined", "name 'undefined' is not defined"),
    ("c.steps = (", "'(' was never closed"),
  ],
)
def test_a_mistake_in_a_config_file_is_one_line_with_its_place(line, said, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(f"""
import jax; from gptneo_jax.training import run_config
from gptneo_jax.config import PRESETS

def get_config(arg=""):
  c = run_config.base(PRESETS["neo_125m"])
  {line}
  return run_config.finish(c, arg)
""")
  with pytest.raises(UserError) as caught:
    config_file.load(str(file))
  assert str(caught.value).startswith(f"{file}:7: ") and said in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_config_that_is_not_built_on_base_has_exactly_its_keys():
  config = run_config.base(ModelConfig())
  config.data.source = "stdlib"
  parse_config.read(config)
  more = ConfigDict(config.to_dict() | {"learning_rate": 1.0})
  with pytest.raises(UserError, match=r"setting learning_rate; .* optimizer\.learning_rate\?$"):
    parse_config.read(more)
  for name, value in (("steps", "1000"), ("steps", True), ("data.path", 3), ("seed", None)):
    other = ConfigDict(config.to_dict(), type_safe=False)
    other.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=rf"^{name} is {value!r}; it is of type (int|str)$"):
      parse_config.read(other)
  fewer = ConfigDict(config.to_dict())
  del fewer.eval.documents
  with pytest.raises(UserError, match=r"has no eval\.documents; start it from"):
    parse_config.read(fewer)


def test_recomputation_that_there_is_not():
  config = run_config.base(ModelConfig())
  config.model.remat = "ful"
  with pytest.raises(UserError, match=r"'ful'; it must be one of auto, none, dots, full$"):
    parse_config.read(config)


def test_a_file_without_a_config(tmp_path):
  (tmp_path / "empty.py").write_text("")
  (tmp_path / "none.py").write_text("def get_config(): pass")
  (tmp_path / "own.py").write_text(
    "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'setps': 3})"
  )
  with pytest.raises(UserError, match=r"own\.py: unknown setting setps; did you mean steps\?"):
    config_file.load(str(tmp_path / "own.py"))
  with pytest.raises(UserError, match=r"empty\.py: .*has no attribute 'get_config'"):
    config_file.load(str(tmp_path / "empty.py"))
  with pytest.raises(UserError, match=r"none\.py: get_config returns NoneType"):
    config_file.load(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"task": "classification"}, r"task is 'classification'.*; there is .*'lm'"),
    ({"model.head": "sequence_classification"}, "head is 'sequence_classification', which task"),
  ],
)
def test_a_task_that_is_not_there_is_no_language_model(changes, message):
  config = config_file.load("configs/tiny.py")
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    parse_config.read(config)


def test_the_package_carries_the_configs(repository, tmp_path):
  """A wheel takes what setuptools finds; of the link to configs/, the files."""
  assert "gptneo_jax.configs" in setuptools.find_packages(repository, include=["gptneo_jax*"])
  for file in (repository / "configs").glob("*.py"):
    assert (repository / "gptneo_jax" / "configs" / file.name).read_text() == file.read_text()


def _program(program: str, *arguments: str, cwd: pathlib.Path, package: pathlib.Path):
  (cwd / "site").mkdir(exist_ok=True)
  if not (cwd / "site" / "gptneo_jax").exists():
    (cwd / "site" / "gptneo_jax").symlink_to(package)
  return subprocess.run(
    [sys.executable, "-m", f"gptneo_jax.{program}", *arguments],
    cwd=cwd, env={"PYTHONPATH": str(cwd / "site"), "JAX_PLATFORMS": "cpu", "PATH": ""},
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip


@pytest.mark.processes
def test_a_config_works_from_another_folder(repository, tmp_path):
  """With the package alone on the path."""
  package = repository / "gptneo_jax"
  ours = ["--config", "configs/tiny.py:runlocal", "--config.steps=0"]
  run = _program("train", *ours, cwd=tmp_path, package=package)
  assert run.stderr == "error: steps is 0; it must be at least 1\n"


def test_a_file_in_the_folder_goes_before_the_packages(repository, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_file.load("configs/tiny.py").steps == 600
  with pytest.raises(UserError, match=r"'configs/huge\.py'; there are: configs/gpt2_small\.py, "):
    config_file.load("configs/huge.py")
  (tmp_path / "configs").mkdir()
  text = (repository / "configs" / "tiny.py").read_text()
  (tmp_path / "configs" / "tiny.py").write_text(text.replace("600, 8", "7, 8"))
  assert config_file.load("configs/tiny.py").steps == 7


@pytest.mark.processes
def test_help_is_no_error(repository, tmp_path):
  for program in ("train", "plan"):
    run = _program(program, "--help", cwd=tmp_path, package=repository / "gptneo_jax")
    assert run.returncode == 0 and not run.stderr
    assert f"python -m gptneo_jax.{program} --config configs/" in run.stdout
    assert "--config" in run.stdout


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_that_no_key_holds(seed):
  """Cut to 32 bits, 2**32 would give the weights of 0, and 10**30 a traceback."""
  config = config_file.load("configs/tiny.py")
  config.seed = seed
  with pytest.raises(UserError, match=r"seed is -?\d+; it must be from 0 to 2\*\*32 - 1"):
    parse_config.read(config)


def test_steps_may_be_open_until_the_data_are_read():
  config = config_file.load("configs/tiny.py")
  config.epochs = 2.0
  for name in ("linear", "cosine", "wsd"):
    config.schedule.update(name=name, decay_steps=0, warmup_ratio=0.1, warmup_steps=5000)
    parse_config.read(config)


def test_steps_that_epochs_would_overrule(monkeypatch):
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  command = ["train", "--config=configs/finetune/ner.py", "--config.steps=9"]
  with pytest.raises(UserError, match=r"no effect: the config has 3 epochs; add --config.epochs=0"):
    config_file._parse(command, values)
  command.append("--config.epochs=0")
  monkeypatch.setattr(sys, "argv", command)  # where ml_collections looks for settings
  config_file._parse(command, values)
  assert values.config.steps == 9 and values.config.epochs == 0


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be below 1"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be at least 0"),
    ({"epochs": -1.0}, "epochs is -1.0; it must be at least 0"),
    ({"patience": 2, "eval_every": 0}, "nothing is evaluated before the end: eval_every is 0"),
  ],
)
def test_habits_of_the_loop_that_cannot_be(settings, said):
  config = run_config.apply(config_file.load("configs/tiny.py"), settings)
  with pytest.raises(UserError, match=said):
    parse_config.read(config)


def test_a_run_that_ends_within_its_warm_up_is_warned_of():
  config = config_file.load("configs/tiny.py")
  assert parse_config.warmup_warning(config) == ""
  config.steps = config.schedule.warmup_steps + 1
  assert parse_config.warmup_warning(config) == ""
  config.steps = config.schedule.warmup_steps // 4
  assert (
    "warmup_steps 40: the learning rate rises to 25% of its peak"
    in parse_config.warmup_warning(config)
  )
  config.schedule.warmup_steps = 0
  assert parse_config.warmup_warning(config) == ""


def test_a_fine_tuning_takes_the_model_of_its_weights(tmp_path):
  source = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, vocab_size=99, window_size=7, embed_dropout=0.3
  )
  save_config(tmp_path, source)
  config = run_config.finetune("sequence_classification", head="sequence_classification").unlock()
  config.init_from, config.model.dtype = str(tmp_path), "bfloat16"
  adopted = adopt_model.adopt_model(config.lock()).model
  assert (adopted.hidden_size, adopted.vocab_size, adopted.window_size) == (32, 99, 7)
  assert (adopted.head, adopted.dtype) == ("sequence_classification", "bfloat16")
  assert adopted.embed_dropout == 0.0


@pytest.mark.parametrize("name", adopt_model.PUBLISHED)
def test_published_models_are_known_without_being_fetched(name):
  assert adopt_model.settings_of(name) == PRESETS[adopt_model.PUBLISHED[name]]
