"use strict";
// One question, two streams of the server's own API: the base, and what was chosen beside it.

const $ = (id) => document.getElementById(id);
const state = { experts: [], running: null };
const EXAMPLES = [
  "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?",
  "Design plirop(x): lift by 4, scale by 2, lower by 3, drop by 1.",
  "Craft f(): Grupot has 30 marit, eats 7, breaks 1, buys 8. Then drop by 4, triple, lift by 7.",
];

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function call(path, options = {}) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("key-field").hidden = false;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : `the server said ${response.status}`);
}

// ---------------------------------------------------------------- what there is

async function load() {
  try {
    const { data } = await (await call("/v1/models")).json();
    const auto = data.find((m) => m.id === "auto");
    state.experts = data.filter((m) => m.transformer2.kind === "expert");
    const names = state.experts.map((e) => e.id);
    const strategy = auto && auto.transformer2.strategy;
    $("facts").textContent = `experts: ${names.join(", ") || "none"}; strategy: ${strategy || "none"}`;
    choices(["auto", ...names, ...(names.length ? ["mix"] : [])]);
    $("expert").replaceChildren(...names.map((name) => new Option(name)));
    if (names.length) await showExpert();
    $("error").textContent = "";
  } catch (error) {
    $("facts").textContent = "";
    $("error").textContent = error.message;
  }
}

function choices(names) {
  $("models").replaceChildren(
    ...names.map((name, i) => {
      const radio = element("input", { type: "radio", name: "model", value: name, checked: i === 0 });
      radio.addEventListener("change", () => ($("sliders").hidden = chosen() !== "mix"));
      return element("label", {}, radio, ` ${name}`);
    }),
  );
  const rows = state.experts.flatMap(({ id }) => {
    const value = element("output", { textContent: "0.50" });
    const slider = element("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: 0.5, id: `w-${id}` });
    slider.addEventListener("input", () => (value.textContent = Number(slider.value).toFixed(2)));
    return [element("label", { htmlFor: slider.id, textContent: id }), slider, value];
  });
  $("sliders").replaceChildren(...rows);
}

const chosen = () => document.querySelector("input[name=model]:checked")?.value ?? "auto";
const model = () =>
  chosen() === "mix" ? `mix:${state.experts.map(({ id }) => `${id}=${$(`w-${id}`).value}`).join(",")}` : chosen();

// ---------------------------------------------------------------- asking

async function ask(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || state.running) return;
  state.running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("error").textContent = "";
  $("adapted-name").textContent = "Adapted";
  $("bars").replaceChildren();
  $("bars-note").textContent = "";
  try {
    await Promise.all([stream("base", question, "base"), stream(model(), question, "adapted", showChoice)]);
  } catch (error) {
    if (error.name !== "AbortError") $("error").textContent = error.message;
    state.running.abort();
  }
  state.running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
}

async function stream(name, question, target, onChoice = () => {}) {
  const started = performance.now();
  $(target).textContent = $(`${target}-note`).textContent = "";
  const body = {
    model: name,
    messages: [{ role: "user", content: question }],
    stream: true,
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
  };
  const signal = state.running.signal;
  const response = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let tokens = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const line of events.filter((e) => e.startsWith("data: ") && e !== "data: [DONE]")) {
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new Error(data.error.message);
      if (data.transformer2) onChoice(data.transformer2);
      const choice = data.choices[0];
      if (choice?.delta?.content) {
        $(target).textContent += choice.delta.content;
        tokens += 1;
      }
      if (choice?.finish_reason) {
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        const why = { length: ", cut at the limit of tokens", stop: "" }[choice.finish_reason] ?? "";
        $(`${target}-note`).textContent = `${tokens} pieces, ${seconds} s${why}`;
      }
    }
  }
}

function showChoice(said) {
  $("adapted-name").textContent = said.choice === "base" ? "Adapted: the base itself" : `Adapted: ${said.choice}`;
  const shares = said.probabilities ?? said.weights;
  $("bars-title").textContent = said.probabilities ? "What kind of request this is" : "Mixing weights";
  $("bars-note").textContent = said.probabilities
    ? "probabilities of the categories"
    : said.first_pass
      ? `the first pass wrote “${said.first_pass}”`
      : "chosen by hand";
  const rows = { ...Object.fromEntries(state.experts.map((e) => [e.id, 0])), ...shares };
  if (!said.probabilities) rows.base = 1 - Object.values(said.weights).reduce((a, b) => a + b, 0);
  $("bars").replaceChildren(
    ...Object.entries(rows).flatMap(([name, share]) => {
      const fill = element("div", { className: name === "base" || name === "other" ? "fill base" : "fill" });
      fill.style.width = `${Math.max(0, Math.min(1, share / (said.probabilities ? 1 : 1.5))) * 100}%`;
      const track = element("div", { className: "track" }, fill);
      track.setAttribute("role", "meter");
      track.setAttribute("aria-label", name);
      track.setAttribute("aria-valuenow", share.toFixed(2));
      const shown = said.probabilities ? `${(100 * share).toFixed(0)} %` : share.toFixed(2);
      return [element("span", { textContent: name }), track, element("span", { textContent: shown })];
    }),
  );
  if (state.experts.some((e) => e.id === said.choice) && $("expert").value !== said.choice) {
    $("expert").value = said.choice;
    showExpert();
  }
}

// ---------------------------------------------------------------- z

async function showExpert() {
  const name = $("expert").value;
  state.z = (await (await call(`/v1/experts/${encodeURIComponent(name)}/z`)).json()).matrices;
  const before = $("matrix").value;
  $("matrix").replaceChildren(...Object.keys(state.z).map((matrix) => new Option(matrix.replace(/^model\./, ""), matrix)));
  if (before in state.z) $("matrix").value = before;
  drawZ();
}

function drawZ() {
  const values = state.z[$("matrix").value];
  const canvas = $("z");
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, bar] = ["--ink", "--soft", "--bar"].map((name) => style.getPropertyValue(name));
  const far = Math.max(0.05, ...values.map((z) => Math.abs(z - 1)));
  const [left, right, top, bottom] = [56, canvas.width - 12, 14, canvas.height - 34];
  const y = (z) => top + ((1 + far - z) / (2 * far)) * (bottom - top);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.font = "13px system-ui, sans-serif";
  const width = (right - left) / values.length;
  pen.fillStyle = bar;
  values.forEach((z, i) => pen.fillRect(left + i * width, Math.min(y(1), y(z)), Math.max(1, width - 1), Math.abs(y(z) - y(1))));
  pen.strokeStyle = soft;
  pen.beginPath();
  pen.moveTo(left, y(1));
  pen.lineTo(right, y(1));
  pen.stroke();
  pen.fillStyle = ink;
  pen.textAlign = "right";
  for (const z of [1 + far, 1, 1 - far]) pen.fillText(z.toFixed(2), left - 6, y(z) + 4);
  pen.textAlign = "left";
  pen.fillText("largest singular value", left, canvas.height - 10);
  pen.textAlign = "right";
  pen.fillText("smallest", right, canvas.height - 10);
  const mean = values.reduce((a, z) => a + Math.abs(z - 1), 0) / values.length;
  $("z-note").textContent = `${values.length} numbers, mean |z - 1| = ${mean.toFixed(3)}; at z = 1 the matrix is the base's`;
}

// ---------------------------------------------------------------- events

$("ask").addEventListener("submit", ask);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => state.running?.abort());
$("key").addEventListener("change", load);
$("expert").addEventListener("change", () => showExpert().catch((e) => ($("error").textContent = e.message)));
$("matrix").addEventListener("change", drawZ);
for (const text of EXAMPLES) {
  const button = element("button", { type: "button", textContent: text });
  button.addEventListener("click", () => {
    $("question").value = text;
    $("question").focus();
  });
  $("examples").append(button);
}
load();
