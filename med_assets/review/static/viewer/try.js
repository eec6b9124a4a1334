// One file sent to the champion: its progress, and the answer.

const POLL_MS = 500;

const drop = document.getElementById("try");
const progress = document.getElementById("try-progress");
const bar = document.getElementById("try-bar");
const result = document.getElementById("try-answer");
const token = document.querySelector('meta[name="review-token"]').content;
const headers = { "X-Review-Token": token, "X-Partial": "true" };
let current = null;

const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

function say(words, share) {
  progress.textContent = words;
  bar.hidden = share === undefined;
  if (typeof share === "number") bar.value = share;
  else bar.removeAttribute("value");
}

async function remove() {
  if (current === null) return;
  await fetch(`${drop.dataset.address}/${current}`, { method: "DELETE", headers });
  current = null;
  result.replaceChildren();
  say("Removed.");
}

// fetch does not say how much was sent; XMLHttpRequest does.
function send(file) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", drop.dataset.address);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => say("Sending", event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status === 202) done(JSON.parse(request.response).trial);
      else failed(new Error(request.response || `The server answered ${request.status}.`));
    });
    request.addEventListener("error", () => failed(new Error("The server can't be reached.")));
    request.send(file);
  });
}

async function wait() {
  for (;;) {
    const answer = await fetch(`${drop.dataset.address}/${current}`, { headers });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    if (found.state === "done") return found;
    if (found.state === "failed") throw new Error(found.error);
    const usual = found.usual_seconds ? `, usually ${Math.ceil(found.usual_seconds)} s` : "";
    say(`${found.state}: ${Math.round(found.seconds)} s${usual}`, null);
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

async function run(file) {
  try {
    await remove();
    say("Sending", 0);
    current = await send(file);
    show(await wait());
  } catch (error) {
    say(error.message);
  }
}

function show(found) {
  say(`Answer of ${found.experiment}. Research use only.`);
  const files = `${drop.dataset.address}/${current}/files/`;
  for (const one of found.cases) {
    const section = result.appendChild(element("section"));
    section.append(element("h2", { textContent: `Case ${one.case}` }));
    if (one.reason) section.append(element("p", { className: "refusal", textContent: one.reason }));
    for (const words of one.warnings) section.append(element("p", { className: "warning", textContent: words }));
    const table = element("table");
    for (const [name, value] of Object.entries(one.measured)) {
      const row = table.insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = value === null ? "undefined" : typeof value === "number" ? +value.toPrecision(4) : value || "–";
    }
    if (table.rows.length) section.append(table);
    for (const name of one.files.filter((path) => path.endsWith(".png"))) {
      section.append(element("img", { src: files + name.split("/").map(encodeURIComponent).join("/"), alt: name }));
    }
  }
  const line = result.appendChild(element("p"));
  line.append(element("a", { href: `${files}prediction.zip`, textContent: "All files of the answer" }), " ");
  const button = line.appendChild(element("button", { type: "button", textContent: "Remove upload and answer" }));
  button.addEventListener("click", remove);
}

if (drop) {
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) run(event.dataTransfer.files[0]);
  });
  drop.querySelector("input").addEventListener("change", (event) => {
    if (event.target.files.length) run(event.target.files[0]);
  });
}
