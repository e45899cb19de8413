// The page to try a model with a head: fields in, labels as bars or spans in the text out.

const at = (id) => document.getElementById(id);
const HINTS = { choices: "one in each line" };
let about;

// Everything that a user or a model has written goes through textContent: never HTML.
function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function addFields() {
  for (const name of about.fields) {
    const label = element("label", HINTS[name] ? `${name} (${HINTS[name]})` : name);
    const field = document.createElement("textarea");
    field.id = `field_${name}`;
    label.append(field);
    at("fields").append(label);
  }
}

function recordOf() {
  const value = (name) => at(`field_${name}`).value;
  const lines = (name) => value(name).split("\n").filter((line) => line.trim());
  return Object.fromEntries(
    about.fields.map((name) => [name, name === "choices" ? lines(name) : value(name)]),
  );
}

function bars(pairs, best) {
  const grid = element("div", "", "bars");
  for (const [name, share] of pairs.sort((a, b) => b[1] - a[1])) {
    const track = element("div", "", "track");
    const bar = element("div", "", "bar");
    bar.style.width = `${100 * share}%`;
    track.append(bar);
    grid.append(
      element("span", name, best.includes(name) ? "name best" : "name"),
      track,
      element("span", `${(100 * share).toFixed(1)}%`),
    );
  }
  return grid;
}

// A text with spans of it marked; spans do not overlap.
function marked(text, spans) {
  const said = element("p", "", "said");
  const characters = Array.from(text); // Python counts characters, JavaScript UTF-16 units
  let end = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    said.append(characters.slice(end, span.start).join(""));
    const mark = element("mark", characters.slice(span.start, span.end).join(""));
    mark.append(element("small", span.note));
    said.append(mark);
    end = span.end;
  }
  said.append(characters.slice(end).join(""));
  return said;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

function resultOf(one, record) {
  if (about.task === "token_classification") {
    const spans = (one.entities ?? []).map(({ characters, type, score }) => ({
      start: characters[0], end: characters[1], note: `${type} ${percent(score)}`,
    }));
    return marked(record.text, spans);
  }
  if (about.task === "question_answering") {
    const none = element("p", `no answer in the text (${percent(one.no_answer_probability)})`);
    if (!one.answer) return none;
    return marked(record.context, [{ start: one.start, end: one.end, note: percent(one.probability) }]);
  }
  if (about.task === "multiple_choice") {
    return bars(record.choices.map((text, n) => [text, one.probabilities[n]]), [one.text]);
  }
  if (one.probabilities) {
    return bars(Object.entries(one.probabilities), one.labels ?? [one.label]);
  }
  return element("p", String(one.value));
}

async function predict() {
  const key = at("key").value;
  const record = recordOf();
  at("predict").disabled = true;
  at("status").textContent = "…";
  const began = performance.now();
  try {
    const response = await fetch("v1/classify", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) },
      body: JSON.stringify({ input: record }),
    });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error.message);
    at("result").replaceChildren(resultOf(body.data[0], record));
    at("status").textContent = `${((performance.now() - began) / 1000).toFixed(2)} s`;
  } catch (error) {
    at("result").replaceChildren(element("p", error.message, "error"));
    at("status").textContent = "";
  }
  at("predict").disabled = false;
}

about = await (await fetch("about")).json();
document.title = about.model;
at("model").textContent = about.model;
at("note").textContent = about.task.replaceAll("_", " ");
at("key_field").hidden = !about.needs_key;
addFields();
at("predict").onclick = predict;
document.body.dataset.ready = "true";
