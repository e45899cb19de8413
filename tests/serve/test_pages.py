"""The pages in a real browser: Debian's chromium and its driver (apt install chromium-driver)."""

import json
import shutil
import time

import numpy as np
import pytest

from gptneo_jax import data
from tests.helpers import headed_folders
from tests.helpers.served import serving
from tests.helpers.text_models import TINY, make, make_tokenizer

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
  pytest.skip("needs chromium and chromedriver", allow_module_level=True)
pytestmark = pytest.mark.processes

HTML = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
MESSAGES = (
  "return Array.from(document.getElementById('chat').shadowRoot"
  ".querySelectorAll('.message-bubble')).map(e => e.innerText)"
)

# The button that has sent the message stops its answer: as soon as that has begun.
STOP = """
const root = document.getElementById('chat').shadowRoot;
const timer = setInterval(() => {
  const [last] = Array.from(root.querySelectorAll('.message-bubble')).slice(-1);
  const icon = root.getElementById('stop-icon');
  if (!icon || !last.innerText.startsWith('<img')) return;
  clearInterval(timer);
  icon.parentElement.click();
}, 2);
"""


@pytest.fixture(scope="module")
def says_html(tmp_path_factory) -> str:
  """A model that says HTML, again and again, whatever it is asked."""
  tokenizer = make_tokenizer()
  tokenizer.add_tokens([HTML])
  said = tokenizer.convert_tokens_to_ids(HTML)
  config = TINY.replace(vocab_size=len(tokenizer), max_position_embeddings=512)
  lm = make(config)
  params = lm.params
  # The last norm gives the same vector for every token, which is the embedding of one.
  params["ln_f"]["scale"] = np.zeros_like(params["ln_f"]["scale"])
  params["ln_f"]["bias"] = np.full_like(params["ln_f"]["bias"], 3.0)
  table = np.asarray(params["wte"]).copy()
  table[said] = 3.0
  params["wte"] = table
  lm.params = params
  lm.tokenizer = tokenizer
  path = str(tmp_path_factory.mktemp("html") / "html")
  lm.save(path)
  data.save_tokenizer(tokenizer, path)
  return path


@pytest.fixture(scope="module")
def browser():
  options = webdriver.ChromeOptions()
  for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
    options.add_argument(argument)
  options.add_argument("--window-size=420,800")  # a phone's
  options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
  driver = webdriver.Chrome(
    options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
  )
  yield driver
  driver.quit()


def wait(condition, seconds=30):
  until = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < until, "it does not happen"
    time.sleep(0.1)
  return found


def opened(browser, served):
  """The page at /, ready; only this server has been asked for anything."""
  browser.get_log("performance")
  browser.get(f"{served.url}/")
  wait(lambda: browser.execute_script("return document.body.dataset.ready"))
  return lambda id: browser.find_element("id", id)


def asked(browser) -> set[str]:
  """The hosts that the page has sent requests to."""
  events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
  urls = [
    event["params"]["request"]["url"]
    for event in events
    if event["method"] == "Network.requestWillBeSent"
  ]
  return {url.split("/")[2] for url in urls if not url.startswith("data:")}


def test_chat(browser, says_html):
  with serving(says_html, "--slots", "1") as served:
    at = opened(browser, served)
    assert not at("key").is_displayed()
    browser.execute_script("document.getElementById('settings').open = true")
    for id, value in (("temperature", "0"), ("max_tokens", "3"), ("system", "be brief")):
      at(id).clear()
      at(id).send_keys(value)
    send = lambda text: browser.execute_script(
      "document.getElementById('chat').submitUserMessage({text: arguments[0]})", text
    )
    send(f"say {HTML}")
    wait(lambda: "3 tokens" in at("status").text)
    # What either side has written is text.
    assert browser.execute_script(MESSAGES) == [f"say {HTML}", HTML * 3]
    assert browser.execute_script("return window.hacked") is None
    at("max_tokens").clear()
    at("max_tokens").send_keys("2")
    at("retry").click()
    wait(lambda: "2 tokens" in at("status").text)
    assert browser.execute_script(MESSAGES) == [f"say {HTML}", HTML * 2]
    at("max_tokens").clear()
    at("max_tokens").send_keys("400")
    browser.execute_script(STOP)
    send("more")
    wait(lambda: at("status").text == "stopped")
    answer = browser.execute_script(MESSAGES)[-1]
    assert 0 < answer.count("<img") < 400 and browser.execute_script("return window.hacked") is None
    at("clear").click()
    assert browser.execute_script(MESSAGES) == []
    assert asked(browser) == {served.url.split("/")[2]}


def test_classifier(browser, tmp_path):
  with serving(headed_folders.spam(tmp_path / "spam"), "--api_key", "secret") as served:
    at = opened(browser, served)
    at("field_text").send_keys("WINNER! Call now")
    at("predict").click()
    wait(lambda: "API key" in at("result").text)
    at("key").send_keys("secret")
    at("predict").click()
    wait(lambda: "ham" in at("result").text)
    shares = [float(one.rstrip("%")) for one in at("result").text.split() if one.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares[0] >= shares[1]
    assert browser.find_element("css selector", ".best").text == at("result").text.split()[0]
    assert asked(browser) == {served.url.split("/")[2]}
