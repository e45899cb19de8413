"""Progress without a terminal is plain lines; on one it is tqdm's bar."""

import sys

import pytest
import tqdm

from gptneo_jax import cli


@pytest.fixture
def minutes(monkeypatch):
  """A clock of tqdm's that goes on a minute at each call."""
  now = iter(range(0, 10**6, 60))
  create = tqdm.tqdm.__init__

  def start(bar, *args, **options):
    create(bar, *args, **options)
    bar._time = lambda: float(next(now))
    bar.start_t = bar.last_print_t = bar._time()

  monkeypatch.setattr(tqdm.tqdm, "__init__", start)


def lines(capsys) -> list[str]:
  text = capsys.readouterr().err
  assert "\r" not in text and "\x1b" not in text and (not text or text.endswith("\n"))
  return text.splitlines()


def test_a_short_job_is_one_line(capsys):
  with cli.progress_bar(total=400, desc="answers", initial=100) as bar:
    for _ in range(300):
      bar.update()
  (line,) = lines(capsys)
  assert line.startswith("answers: 100% 400/400 [")


def test_a_long_one_has_a_line_now_and_then(capsys, minutes):
  with cli.progress_bar(desc="evaluating", unit=" tokens", unit_scale=True) as bar:
    for _ in range(3):
      bar.update(2000)
      bar.set_postfix_str("loss 2.5", refresh=False)
      tqdm.tqdm.write("something else")
  shown = lines(capsys)
  assert [line.split(" [")[0] for line in shown] == [
    f"evaluating: {n}.00k tokens" for n in (2, 4, 6)
  ]
  assert "loss 2.5" in shown[-1]


def test_a_job_shorter_than_its_delay_says_nothing(capsys):
  with cli.progress_bar(total=3, delay=100) as bar:
    bar.update(3)
  assert lines(capsys) == []


def test_nothing_done_or_switched_off_says_nothing(capsys):
  with cli.progress_bar(total=0):
    pass
  with cli.progress_bar(total=3, disable=True) as bar:
    bar.update()
  assert lines(capsys) == []


def test_on_a_terminal_it_is_a_bar(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with cli.progress_bar(total=3) as bar:
    bar.update(3)
  assert "\r" in capsys.readouterr().err
