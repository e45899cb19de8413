// The chat page: deep-chat shows the messages, this file talks to /v1/chat/completions.

const at = (id) => document.getElementById(id);
const chat = at("chat");
let about = { positions: 0 };

// What has been said; deep-chat shows it, this is what is sent.
let said = [];

function lookOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function dress() {
  const [paper, ink, line, mine] = ["--paper", "--ink", "--line", "--mine"].map(lookOf);
  const bubble = { color: ink, backgroundColor: paper, border: `1px solid ${line}`, maxWidth: "85%" };
  chat.style.cssText =
    `width: 100%; height: 100%; border: 1px solid ${line}; border-radius: 0.5rem; background: ${paper}; font-family: inherit`;
  chat.messageStyles = {
    default: { shared: { bubble }, user: { bubble: { backgroundColor: mine } } },
  };
  chat.textInput = {
    placeholder: { text: "Write a message", style: { color: lookOf("--soft") } },
    styles: {
      text: { color: ink },
      container: { backgroundColor: paper, border: `1px solid ${line}` },
    },
  };
}

function bodyOf() {
  const number = (id) => Number(at(id).value);
  const system = at("system").value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
    temperature: number("temperature"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (at("seed").value !== "") body.seed = number("seed");
  return body;
}

function headersOf() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// Sends what has been said; without its oldest turns where it is too long for the model.
async function ask(signal) {
  for (;;) {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headersOf(), body: JSON.stringify(bodyOf()), signal,
    });
    if (response.ok) return response;
    const { error } = await response.json();
    if (error.code !== "context_length_exceeded" || said.length < 3) throw new Error(error.message);
    said = said.slice(2);
  }
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function answer(body, signals) {
  const stopper = new AbortController();
  signals.stopClicked.listener = () => stopper.abort();
  said.push({ role: "user", content: body.messages.at(-1).text });
  const began = performance.now();
  let text = "", tokens = 0, first = null;
  buttons(false);
  at("status").textContent = "…";
  signals.onOpen();
  try {
    for await (const event of eventsOf(await ask(stopper.signal))) {
      const piece = event.choices[0]?.delta?.content;
      if (piece) {
        first ??= performance.now();
        text += piece;
        signals.onResponse({ text: piece });
      }
      if (event.usage) tokens = event.usage.completion_tokens;
    }
    const seconds = (performance.now() - began) / 1000;
    at("status").textContent =
      `${tokens} tokens, ${(tokens / seconds).toFixed(1)} per second, the first after ` +
      `${(((first ?? began) - began) / 1000).toFixed(2)} s`;
  } catch (error) {
    if (error.name === "AbortError") {
      at("status").textContent = "stopped";
    } else {
      at("status").textContent = "";
      signals.onResponse({ error: error.message });
    }
  }
  signals.onClose();
  if (text) said.push({ role: "assistant", content: text });
  else said.pop();
  buttons(true);
}

function buttons(enabled) {
  const answered = said.at(-1)?.role === "assistant";
  at("retry").disabled = at("copy").disabled = !(enabled && answered);
  at("clear").disabled = !enabled;
}

function shown() {
  return said.map(({ role, content }) => ({ role: role === "user" ? "user" : "ai", text: content }));
}

function show() {
  chat.clearMessages(true);
  for (const message of shown()) chat.addMessage(message);
}

at("retry").onclick = () => {
  const question = said.at(-2).content;
  said = said.slice(0, -2);
  show();
  chat.submitUserMessage({ text: question });
};

at("copy").onclick = async () => {
  const text = said.at(-1).content;
  try {
    await navigator.clipboard.writeText(text);
    at("status").textContent = "copied";
  } catch {
    at("status").textContent = "the browser does not let this page copy";
  }
};

at("clear").onclick = () => {
  said = [];
  show();
  buttons(true);
  at("status").textContent = "";
};

dress();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
chat.connect = { stream: true, handler: answer };
about = await (await fetch("about")).json();
document.title = about.model;
at("model").textContent = about.model;
at("note").textContent = about.has_template
  ? `at most ${about.positions} tokens`
  : "not fine-tuned on conversations: it continues text";
at("key_field").hidden = !about.needs_key;
if (about.needs_key) {
  at("settings").open = true;
  at("key").value = sessionStorage.getItem("key") ?? "";
  at("key").onchange = () => sessionStorage.setItem("key", at("key").value);
}
document.body.dataset.ready = "true";
