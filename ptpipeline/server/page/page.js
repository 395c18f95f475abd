"use strict";

// Whatever comes from the server or from a person is set as text, never as HTML.

const EVERY = 5000; // milliseconds between two looks
const KEY = "ptp-token";
const byId = (id) => document.getElementById(id);
let aliases = [];
let shownFields = "";

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function ask(path, body) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, credentials: "omit", cache: "no-store" };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {  // what stands in front of the server answered
    throw new Error(`The server does not answer (${response.status}).`);
  }
  if (response.status === 401) signIn(Boolean(token));
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

function signIn(wrong) {
  sessionStorage.removeItem(KEY);
  byId("served").hidden = true;
  byId("sign-in").hidden = false;
  byId("summary").textContent = wrong ? "The server does not know this token." : "This server asks for a token.";
}

function showTrouble(sentence) {
  byId("trouble").textContent = sentence;
  byId("trouble").hidden = !sentence;
}

// ---------------------------------------------------------------- what is served

function ago(seconds) {
  if (seconds === null) return "never";
  return seconds < 120 ? `${Math.round(seconds)} s ago` : `${Math.round(seconds / 60)} min ago`;
}

function showStatus(status) {
  aliases = status.aliases;
  const tasks = new Set(aliases.map((alias) => alias.task)).size;
  byId("summary").textContent =
    `${tasks} ${tasks === 1 ? "task" : "tasks"} · ${status.held} ${status.held === 1 ? "version" : "versions"} loaded · ` +
    `${status.waiting} texts waiting · store reached ${ago(status.store_age_seconds)}`;
  showTrouble(status.trouble ? "The store cannot be reached; the server goes on with the versions that it has." : "");
  byId("aliases").replaceChildren(...aliases.map(makeRow));
  byId("names").replaceChildren(...aliases.flatMap((alias) => [alias.id, alias.version]).map(makeOption));
  if (!byId("left").value && aliases.length) byId("left").value = aliases[0].id;
  byId("sign-in").hidden = true;
  byId("served").hidden = false;
  showFields();
}

function makeOption(name) {
  const option = make("option");
  option.value = name;
  return option;
}

function makeRow(alias) {
  const row = make("tr");
  const name = make("td");
  const button = make("button", alias.task, "link");
  button.type = "button";
  button.addEventListener("click", () => choose(alias));
  name.append(button);
  const version = make("td", alias.version);
  version.title = alias.digest;
  if (alias.beside) version.append(make("p", describeBeside(alias), "faint"));
  if (alias.trial) version.append(make("p", alias.trial, "faint"));
  if (alias.refused) version.append(make("p", `A newer promotion is refused: ${alias.refused}`, "bad"));
  const since = new Date(alias.since).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  row.append(name, make("td", alias.alias), version, make("td", since));
  for (const value of [alias.answers, alias.errors]) row.append(make("td", String(value), "number"));
  for (const value of [alias.median_ms, alias.slowest_ms]) {
    row.append(make("td", alias.answers ? value.toFixed(0) : "–", "number"));
  }
  return row;
}

function describeBeside(alias) {
  const name = `${alias.task}@${alias.beside.version}`;
  return alias.beside.percent ? `canary: ${name} answers ${alias.beside.percent} %` : `shadow: ${name}`;
}

function choose(alias) {
  byId("left").value = alias.id;
  showFields();
  byId("fields").querySelector("textarea").focus();
}

// ---------------------------------------------------------------- a text on two versions

function find(name) {
  const task = name.split("@")[0];
  return aliases.find((alias) => alias.id === name) || aliases.find((alias) => alias.task === task);
}

function showFields() {
  const alias = find(byId("left").value);
  const names = alias ? alias.fields : ["text"];
  if (shownFields === names.join(" ")) return;
  shownFields = names.join(" ");
  byId("fields").replaceChildren(
    ...names.map((name) => {
      const label = make("label", name);
      const area = make("textarea");
      area.name = name;
      area.required = true;
      label.append(area);
      return label;
    }),
  );
}

async function answerOne(name, fields) {
  const card = make("article", undefined, "answer");
  card.append(make("h3", name));
  const began = performance.now();
  try {
    const alias = find(name);
    const answer =
      alias && alias.generates
        ? await ask("/v1/completions", { model: name, fields })
        : await ask("/v1/classify", { model: name, input: fields });
    const took = performance.now() - began;
    if (answer.choices) card.append(make("p", answer.choices[0].text, "generated"));
    else card.append(...makeLabels(answer.data[0]));
    const source = make("p", `${answer.version} · ${answer.digest.slice(0, 12)} · ${took.toFixed(0)} ms`, "faint");
    source.title = answer.digest;
    card.append(source);
  } catch (error) {
    card.append(make("p", error.message, "bad"));
  }
  return card;
}

function makeLabels(answer) {
  const ranked = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]); // an object has numbers first
  return ranked.map(([name, probability]) => {
    const row = make("div", undefined, name === answer.label ? "label first" : "label");
    const meter = make("meter");
    meter.value = probability;
    meter.setAttribute("aria-label", name);
    row.append(make("span", name), meter, make("span", `${(probability * 100).toFixed(1)} %`, "number"));
    return row;
  });
}

async function tryText(event) {
  event.preventDefault();
  const fields = Object.fromEntries([...byId("fields").querySelectorAll("textarea")].map((area) => [area.name, area.value]));
  const names = [byId("left").value.trim(), byId("right").value.trim()].filter(Boolean);
  byId("ask").disabled = true;
  try {
    byId("answers").replaceChildren(...(await Promise.all(names.map((name) => answerOne(name, fields)))));
  } finally {
    byId("ask").disabled = false;
  }
}

// ---------------------------------------------------------------- the clock

async function look() {
  try {
    showStatus(await ask("/v1/status"));
  } catch (error) {
    if (byId("sign-in").hidden) showTrouble(error.message);
  }
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("token").value.trim());
  byId("token").value = "";
  look();
});
byId("try").addEventListener("submit", tryText);
byId("left").addEventListener("input", showFields);
setInterval(() => byId("sign-in").hidden && look(), EVERY);
look();
