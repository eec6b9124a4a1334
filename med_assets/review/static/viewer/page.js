// Fills each element with the attribute data-view by a viewer of what its address describes; those of one data-link move together.

import { Viewer } from "./viewer.js";

const viewers = [];
let last = null;

// Links to the case under each model, and without one.
function controls(found) {
  const line = Object.assign(document.createElement("p"), { className: "viewer-links" });
  line.append("Prediction of:");
  const link = (words, model, current) => {
    const made = line.appendChild(document.createElement(current ? "strong" : "a"));
    made.textContent = words;
    if (!current) made.href = `?model=${encodeURIComponent(model)}`;
  };
  for (const model of found.models) link(model, model, model === found.model);
  link(found.models.length ? "none" : "no model yet", "none", found.model === "");
  if (found.models.length > 1) {
    const other = found.models.find((model) => model !== found.model);
    const pair = line.appendChild(document.createElement("a"));
    pair.textContent = "two side by side";
    const first = found.model || found.models.find((model) => model !== other);
    pair.href = `${location.pathname}/compare?a=${encodeURIComponent(first)}&b=${encodeURIComponent(other)}`;
  }
  return line;
}

async function fill(holder) {
  const model = holder.dataset.controls ? new URLSearchParams(location.search).get("model") : null;
  const answer = await fetch(holder.dataset.view + (model === null ? "" : `?model=${encodeURIComponent(model)}`));
  const found = await answer.json();
  if (!answer.ok) {
    holder.textContent = found.error ?? `The server answered ${answer.status}.`;
    holder.dataset.state = "failed";
    return;
  }
  holder.replaceChildren();
  if (holder.dataset.controls) holder.append(controls(found));
  for (const view of found.views) {
    if (found.views.length > 1) holder.append(Object.assign(document.createElement("h3"), { textContent: view.title }));
    const root = holder.appendChild(document.createElement("div"));
    root.className = "viewer";
    root.dataset.name = view.name;
    const peers = viewers.filter((one) => holder.dataset.link && one.link === holder.dataset.link && one.view.name === view.name);
    const viewer = new Viewer(root, view, peers);
    viewer.link = holder.dataset.link;
    for (const peer of peers) peer.peers.push(viewer);
    root.addEventListener("focusin", () => (last = viewer));
    root.addEventListener("pointerdown", () => (last = viewer));
    viewers.push(viewer);
    last ??= viewer;
  }
}

document.addEventListener("keydown", (event) => {
  const typed = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (typed || event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || last === null) return;
  if (last.key(event)) event.preventDefault();
});

for (const holder of document.querySelectorAll("[data-view]")) {
  fill(holder).catch((error) => {
    holder.textContent = error.message;
    holder.dataset.state = "failed";
  });
}
