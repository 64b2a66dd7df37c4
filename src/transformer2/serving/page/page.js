"use strict";
// One question, streams of the server's own API: the base, what was chosen beside it, and what the dispatcher says.

const $ = (id) => document.getElementById(id);
const state = { experts: [], strategy: null, running: null, weights: null };
const EXAMPLES = {
  "a sum": "Skokap carries 24 pens, eats 2, finds 7, sells 6. How many?",
  "a function": "Design plirop(x): lift by 4, scale by 2, lower by 3, drop by 1.",
  "both at once": "Craft f(): Grupot has 30 marit, eats 7, breaks 1, buys 8. Then drop by 4, triple, lift by 7.",
}; // of the embedded model's language

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const number = (text) => element("span", { className: "number", textContent: text });

async function call(path, options = {}) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch(lost);
  if (response.ok) return response;
  if (response.status === 401) {
    $("key-field").hidden = false;
    throw new Error("this server asks for its API key: give it above");
  }
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error?.message ?? `the server said ${response.status}`);
}

function lost(error) {
  throw error.name === "AbortError" ? error : new Error("the server does not answer; is it still running?");
}

function say(...errors) {
  $("error").textContent = [...new Set(errors.map((e) => e.message))].join("; ");
}

// ---------------------------------------------------------------- what there is

async function load() {
  try {
    const { data } = await (await call("v1/models")).json();
    state.experts = data.filter((m) => m.transformer2.kind === "expert");
    const names = state.experts.map((e) => e.id);
    $("picture-field").hidden = !data.find((m) => m.id === "base").transformer2.pictures;
    state.strategy = names.length ? data.find((m) => m.id === "auto").transformer2.strategy : null;
    $("facts").textContent = `experts: ${names.join(", ") || "none"} · strategy: ${state.strategy ?? "none"}`;
    showModels(["auto", ...names, ...(names.length ? ["mix"] : [])]);
    $("examples").hidden = state.experts[0]?.transformer2.base !== "tiny";
    $("z-card").hidden = !names.length;
    $("whose").replaceChildren(...names.map((name) => new Option(name)));
    say();
    if (names.length) await showZ();
  } catch (error) {
    $("facts").textContent = "";
    say(error);
  }
}

function showModels(names) {
  $("models").replaceChildren(
    ...names.map((name, i) => {
      const radio = element("input", { type: "radio", name: "model", value: name, checked: i === 0 });
      radio.addEventListener("change", () => ($("sliders").hidden = name !== "mix"));
      return element("label", {}, radio, name);
    }),
  );
  $("sliders").hidden = true;
  $("sliders").replaceChildren(
    ...state.experts.flatMap(({ id }) => {
      const value = element("output", { textContent: "0.50" });
      const slider = element("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: 0.5, id: `weight-${id}` });
      slider.addEventListener("input", () => (value.textContent = Number(slider.value).toFixed(2)));
      return [element("label", { htmlFor: slider.id, textContent: id }), slider, value];
    }),
  );
}

function model() {
  const name = document.querySelector("input[name=model]:checked")?.value ?? "auto";
  if (name !== "mix") return name;
  const weights = state.experts.map(({ id }) => [id, $(`weight-${id}`).value]).filter(([, weight]) => Number(weight));
  return weights.length ? `mix:${weights.map((pair) => pair.join("=")).join(",")}` : "base";
}

// ---------------------------------------------------------------- asking

async function ask(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  state.running?.abort();
  const running = (state.running = new AbortController());
  for (const id of ["base", "adapted", "base-note", "adapted-note", "adapted-name", "bars", "bars-note", "status"])
    $(id).textContent = "";
  $("stop").disabled = false;
  say();
  let content;
  try {
    content = await withPicture(question);
  } catch (error) {
    $("stop").disabled = true;
    return say(error);
  }
  if (state.running !== running || running.signal.aborted) return;
  const name = model();
  const streams = [answer("base", content, "base", running), answer(name, content, "adapted", running, showAdapted)];
  if (name !== "auto" && state.strategy) streams.push(stream("auto", content, running, { choice: showDispatch }, 1));
  const ended = await Promise.allSettled(streams);
  if (state.running !== running) return; // another question was asked meanwhile
  state.running = null;
  if (document.activeElement === $("stop")) $("question").focus();
  $("stop").disabled = true;
  if (running.signal.aborted) return;
  const errors = ended.filter((e) => e.status === "rejected").map((e) => e.reason);
  say(...errors);
  if (errors.length) return;
  markDifferences($("base"), $("adapted"));
  $("status").textContent = "Both answers are complete.";
}

// The question, with the picture before it where there is one.
async function withPicture(question) {
  const [file] = $("picture").files;
  if (!file) return question;
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read; choose the picture again`));
    reader.readAsDataURL(file);
  });
  return [{ type: "image_url", image_url: { url } }, { type: "text", text: question }];
}

async function answer(name, content, target, running, choice = () => {}) {
  const words = { stop: "", length: " (cut at the limit of tokens)" };
  const note = $(`${target}-note`);
  let why = "";
  try {
    await stream(name, content, running, {
      choice,
      text: (text) => $(target).append(text),
      finish: (reason) => (why = words[reason] ?? ""),
      usage({ completion_tokens: tokens }, { first_pass, second_pass }) {
        const choosing = name === "auto" ? `${first_pass.toFixed(2)} s to choose, ` : "";
        note.textContent = `${tokens} tokens${why} · ${choosing}${second_pass.toFixed(2)} s`;
      },
    });
  } catch (error) {
    if (state.running === running) note.textContent = running.signal.aborted ? "stopped" : "failed";
    throw error;
  }
}

async function stream(name, content, running, { choice, text, finish, usage }, max_tokens) {
  const body = {
    model: name,
    messages: [{ role: "user", content }],
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    max_tokens,
  };
  const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
  const response = await call("v1/chat/completions", options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    if (done) throw new Error("the server ended an answer in the middle; ask again");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events.filter((e) => e.startsWith("data: "))) {
      if (event === "data: [DONE]") return;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      const [first] = data.choices;
      if (first?.delta.role) choice?.(data.transformer2);
      if (first?.delta.content) text?.(first.delta.content);
      if (first?.finish_reason) finish?.(first.finish_reason);
      if (data.usage) usage?.(data.usage, data.transformer2.seconds);
    }
  }
}

function markDifferences(...elements) {
  const [a, b] = elements.map((e) => e.textContent.split(/(?<=\s)(?=\S)/));
  if (a.length * b.length > 1e6) return;
  const common = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1)); // of what comes from i, j on
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i][j] = a[i].trim() === b[j].trim() ? 1 + common[i + 1][j + 1] : Math.max(common[i + 1][j], common[i][j + 1]);
  const kept = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i].trim() === b[j].trim()) kept[0].add(i++), kept[1].add(j++);
    else common[i + 1][j] >= common[i][j + 1] ? i++ : j++;
  }
  [a, b].forEach((words, side) => {
    const parts = words.flatMap((word, i) => {
      if (kept[side].has(i)) return [word];
      const [, text, space] = word.match(/^(.*?)(\s*)$/s);
      return [element("mark", { textContent: text }), space];
    });
    elements[side].replaceChildren(...parts);
  });
}

// ---------------------------------------------------------------- what was chosen

const formula = (weights) =>
  Object.entries(weights).map(([name, weight]) => `${weight.toFixed(2)} ${name}`).join(" + ");

function showAdapted(said) {
  const { choice, weights } = said;
  $("adapted-name").textContent = choice === "mix" ? formula(weights) : choice;
  state.weights = weights;
  const named = choice === "mix" ? `this answer (${formula(weights)})` : `this answer (${choice})`;
  $("whose").replaceChildren(new Option(named, ""), ...state.experts.map(({ id }) => new Option(id)));
  if (state.experts.length) showZ();
  if (model() === "auto" || !state.strategy) showDispatch(said);
}

function showDispatch({ choice, weights, probabilities, first_pass }) {
  if (!state.strategy) {
    $("bars-note").textContent = "There is no strategy: nothing chose.";
    return;
  }
  const known = Object.fromEntries(state.experts.map(({ id }) => [id, 0]));
  const shares = probabilities ?? { ...known, ...weights };
  const most = Math.max(...Object.values(shares));
  const shown = (share) => (probabilities ? `${(100 * share).toFixed(share < 0.01 ? 1 : 0)} %` : share.toFixed(2));
  $("bars").replaceChildren(
    ...Object.entries(shares).flatMap(([name, share]) => {
      const fill = element("div", { className: share === most && share > 0 ? "fill most" : "fill" });
      fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
      const track = element("div", { className: "track", role: "meter" }, fill);
      Object.assign(track, { ariaLabel: name, ariaValueMin: 0, ariaValueMax: 1, ariaValueNow: share });
      track.ariaValueText = shown(share);
      return [element("span", { textContent: name }), track, number(shown(share))];
    }),
  );
  const seen = probabilities ? "Probability of each kind of request." : `The first pass wrote “${first_pass ?? ""}”.`;
  const taken = choice === "mix" ? formula(weights) : choice;
  $("bars-note").textContent = `${seen} By itself the strategy (${state.strategy}) takes ${taken}.`;
}

// ---------------------------------------------------------------- z

// Of the mixture in force, matrix by matrix: z' = 1 + sum of weight (z - 1), or with a weight of the base's, base + sum of weight z.
async function mixedZ({ base, ...weights }) {
  const mixed = {};
  const rest = base ?? Object.values(weights).reduce((left, weight) => left - weight, 1);
  for (const [name, weight] of Object.entries(weights)) {
    const { matrices } = await (await call(`v1/experts/${encodeURIComponent(name)}/z`)).json();
    for (const [matrix, z] of Object.entries(matrices)) {
      mixed[matrix] ??= z.map(() => rest);
      z.forEach((value, i) => (mixed[matrix][i] += weight * value));
    }
  }
  return mixed;
}

async function showZ() {
  const whose = $("whose").value;
  const asked = whose ? { [whose]: 1 } : state.weights;
  const isWanted = () => $("whose").value === whose && (whose || asked === state.weights); // not something else by now
  $("strips").ariaBusy = "true";
  let mixed;
  try {
    // The base has no z of its own to name the matrices.
    mixed = await mixedZ(Object.keys(asked).length ? asked : { [state.experts[0].id]: 0 });
  } catch (error) {
    if (isWanted()) $("strips").replaceChildren(); // never the picture of something else
    return say(error);
  }
  if (!isWanted()) return;
  state.layers = {};
  for (const [matrix, z] of Object.entries(mixed)) {
    const [, layer, name] = matrix.match(/\.(\d+)\.(.*)$/) ?? [null, "none", matrix];
    (state.layers[layer] ??= {})[name] = z;
  }
  const before = $("layer").value;
  $("layer").replaceChildren(...Object.keys(state.layers).map((layer) => new Option(layer)));
  if (before in state.layers) $("layer").value = before;
  drawZ();
  $("strips").ariaBusy = "false";
}

function drawZ() {
  const all = Object.values(state.layers).flatMap((layer) => Object.values(layer).map((z) => z.reduce(farther, 0)));
  const far = Math.max(0.1, Math.ceil(10 * Math.max(...all)) / 10); // one scale for all layers
  const style = getComputedStyle($("strips"));
  const [less, more] = ["--less", "--more"].map((name) => style.getPropertyValue(name).trim().split(" ").map(Number));
  const rows = Object.entries(state.layers[$("layer").value]).flatMap(([name, z]) => {
    const canvas = element("canvas", { width: z.length, height: 1, role: "img" });
    const [low, high] = [Math.min(...z), Math.max(...z)].map((value) => value.toFixed(2));
    canvas.ariaLabel = `${name}: ${z.length} values of z from ${low} to ${high}`;
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(z.length, 1);
    z.forEach((value, i) => image.data.set([...(value < 1 ? less : more), (255 * Math.abs(value - 1)) / far], 4 * i));
    pen.putImageData(image, 0, 0);
    const mean = z.reduce((sum, value) => sum + Math.abs(value - 1), 0) / z.length;
    return [element("span", { textContent: name }), canvas, number(mean.toFixed(3))];
  });
  const ends = [(1 - far).toFixed(1), "z = 1", (1 + far).toFixed(1)].map((text) => element("span", { textContent: text }));
  const scale = element("div", {}, element("div", { className: "scale" }), element("div", { className: "ends" }, ...ends));
  $("strips").replaceChildren(...rows, element("span"), scale, element("span"));
  $("z-note").textContent = "Left: the largest singular value. Right: mean |z − 1|. Colourless: as in the base.";
}

const farther = (far, value) => Math.max(far, Math.abs(value - 1));

// ---------------------------------------------------------------- events

$("ask").addEventListener("submit", ask);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("picture").addEventListener("change", () => ($("no-picture").hidden = !$("picture").files.length));
$("no-picture").addEventListener("click", () => {
  $("picture").value = "";
  $("no-picture").hidden = true;
  $("picture").focus();
});
$("stop").addEventListener("click", () => state.running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && state.running?.abort());
$("key").addEventListener("change", load);
$("whose").addEventListener("change", showZ);
$("layer").addEventListener("change", drawZ);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.layers && drawZ());
for (const [name, text] of Object.entries(EXAMPLES)) {
  const button = element("button", { type: "button", textContent: name, title: text });
  button.addEventListener("click", () => {
    $("question").value = text;
    $("question").focus();
  });
  $("examples").lastElementChild.append(button);
}
load();
