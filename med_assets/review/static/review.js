// The keyboard of the worklist and of the page of a case, and decisions without loading the page anew.
"use strict";

const token = document.querySelector('meta[name="review-token"]').content;
const list = document.getElementById("worklist");
const casePage = document.getElementById("case");
const noteDialog = document.getElementById("note-dialog");
const helpDialog = document.getElementById("help-dialog");
const note = document.getElementById("note");
const answer = document.getElementById("answer");
let chosen = 0;

function rows() {
  return list ? Array.from(list.querySelectorAll("tr[data-case]")) : [];
}

function choose(place) {
  const all = rows();
  chosen = Math.max(0, Math.min(place, all.length - 1));
  all.forEach((row, i) => row.toggleAttribute("aria-current", i === chosen));
  if (all[chosen]) all[chosen].scrollIntoView({ block: "nearest" });
}

function current() {
  if (casePage) return casePage.dataset.case;
  const row = rows()[chosen];
  return row ? row.dataset.case : "";
}

function say(text, bad) {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.className = text ? (bad ? "refusal" : "notice") : "";
}

async function reload() {
  const answered = await fetch(location.href, { headers: list ? { "X-Partial": "true" } : {} });
  if (!answered.ok) { say(await answered.text(), true); return; }
  const text = new DOMParser().parseFromString(await answered.text(), "text/html");
  if (!list) {
    // All but the viewer, which keeps what it shows.
    for (const part of document.querySelectorAll("[data-live]")) part.replaceWith(text.getElementById(part.id));
    return;
  }
  const before = current(); // which keys may have moved since the decision
  list.replaceChildren(...text.body.childNodes);
  const place = rows().findIndex((row) => row.dataset.case === before);
  choose(place < 0 ? chosen : place);
}

let recording = Promise.resolve(true);

function decide(decision, text) {
  const id = current();
  if (id) recording = recording.then(() => record(id, decision, text)).catch((error) => say(error.message, true));
}

// Returns whether it was recorded.
async function record(id, decision, text) {
  const program = (casePage || list).dataset.program;
  const answered = await fetch(`/${encodeURIComponent(program)}/cases/${encodeURIComponent(id)}/decisions`, {
    method: "POST",
    headers: { "X-Partial": "true", "X-Review-Token": token },
    body: new URLSearchParams({ decision: decision, note: text }),
  });
  if (!answered.ok) { say(await answered.text(), true); return false; }
  await reload();
  return true;
}

// A page is left once what was decided on it is recorded; where it was refused the message stays.
async function leave(address) {
  if ((await recording) !== false) location.href = address;
  recording = Promise.resolve(true);
}

const TITLES = { exclude: ["Exclude", "Reason"], read: ["Read", "Note"], comment: ["Comment", "Text"] };
let asking = "";

function ask(kind) {
  if (!current()) return;
  asking = kind;
  document.getElementById("note-title").textContent = `${TITLES[kind][0]} ${current()}`;
  document.getElementById("note-label").textContent = TITLES[kind][1];
  document.getElementById("answer-label").hidden = kind !== "read";
  note.required = kind !== "read";
  note.value = "";
  noteDialog.returnValue = "";
  noteDialog.showModal();
  (kind === "read" ? answer : note).focus();
}

noteDialog.addEventListener("close", () => {
  if (noteDialog.returnValue === "ok") decide(asking === "read" ? answer.value : asking, note.value);
});

// In a list of answers Enter records, as it does in the field of the note.
answer.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); noteDialog.close("ok"); }
});

function go(selector) {
  const link = document.querySelector(selector);
  if (link) leave(link.href);
}

const KEYS = {
  j: () => (casePage ? go("a[rel=next]") : choose(chosen + 1)),
  k: () => (casePage ? go("a[rel=prev]") : choose(chosen - 1)),
  ArrowDown: () => list && choose(chosen + 1),
  ArrowUp: () => list && choose(chosen - 1),
  Enter: () => { const row = rows()[chosen]; if (row) leave(row.dataset.url); },
  u: () => go("a[rel=up]"),
  n: () => list && go("a[rel=next]"),
  p: () => list && go("a[rel=prev]"),
  a: () => decide("accept", ""),
  e: () => ask("exclude"),
  r: () => (answer.options.length ? ask("read") : say("This program has no findings to choose from.", true)),
  c: () => ask("comment"),
  "/": () => { const field = document.querySelector("input[type=search]"); if (field) field.focus(); },
  "?": () => helpDialog.showModal(),
};

// On the page of a case these belong to its viewer.
if (casePage) for (const key of ["n", "p", "Enter", "ArrowDown", "ArrowUp"]) delete KEYS[key];

document.addEventListener("keydown", (event) => {
  const inField = event.target.closest("input, select, textarea, [contenteditable]");
  if (event.key === "Escape" && inField) inField.blur();
  if (inField || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && event.target.closest("a, button")) return;
  const action = KEYS[event.key];
  if (action) { event.preventDefault(); action(); }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-decision]");
  if (!button) return;
  if (button.dataset.decision === "accept") decide("accept", "");
  else ask(button.dataset.decision);
});
if (list) {
  list.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-case]");
    if (row && !event.target.closest("a")) choose(rows().indexOf(row));
  });
  for (const field of document.querySelectorAll("#filters select")) field.addEventListener("change", () => field.form.submit());
  const from = new URLSearchParams(location.hash.slice(1)).get("case");
  choose(Math.max(0, rows().findIndex((row) => row.dataset.case === from)));
}
const correction = document.getElementById("correction");
if (correction) correction.addEventListener("submit", async (event) => {
  event.preventDefault();
  const note = new URLSearchParams({ note: correction.elements.note.value });
  const program = encodeURIComponent(casePage.dataset.program), id = encodeURIComponent(casePage.dataset.case);
  try {
    const answered = await fetch(`/${program}/cases/${id}/correction?${note}`, {
      method: "POST",
      headers: { "X-Partial": "true", "X-Review-Token": token },
      body: correction.elements.label.files[0],
    });
    const text = await answered.text();
    if (answered.ok) { correction.reset(); await reload(); }
    say(text, !answered.ok);
  } catch (error) { say(error.message, true); }
});
document.body.dataset.keys = "ready";
