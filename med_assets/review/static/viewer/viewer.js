// The viewer of a case: planes of one view side by side, with windows, overlays, keyboard, charts and tables.

import { Layer } from "./layers.js";
import { DIFFERENCE, Plane } from "./plane.js";
import { plot } from "./charts.js";

const WHEEL_STEP = 40; // pixels of a wheel that are one slice
const ZOOMS = [1, 16];

const HELP = [
  ["↑ ↓", "slice before or after"], ["Page ↑ ↓", "ten slices"], ["← →", "another plane"], ["1–9", "window"],
  ["+ − 0", "zoom, and back"], ["l", "label"], ["p", "prediction"], ["d", "difference"], ["o", "all overlays"], ["x", "crosshair"],
];

export class Viewer {
  constructor(root, view, peers = []) {
    Object.assign(this, { root, view, peers });
    this.shape = view.shape;
    this.spacing = view.spacing_mm;
    this.cursor = [...view.start];
    this.zoom = 1;
    this.opacity = 0.45;
    this.crosshair = true;
    this.hidden = false;
    this.difference = false;
    this.percent = true;
    this.off = new Set(); // names of masks, layers and roles of points that are switched off
    this.layers = view.layers.map((one) => new Layer(one, this.shape, (layer, error) => this._arrived(layer, error)));
    this.image = this.layers.find((layer) => layer.kind === "image");
    this.windows = this.image.windows;
    this.window = { ...this.windows[0] };
    this.layers.filter((layer) => !layer.shown).forEach((layer) => this.off.add(layer.name));
    for (const layer of this.layers) {
      layer.masks.filter((mask) => !mask.shown).forEach((mask) => this.off.add(`${layer.name}/${mask.bit}`));
    }
    this.pending = false;
    this._build();
    root.viewer = this;
    root.dataset.state = "loading";
    this.redraw();
  }

  // -- what is displayed

  overlays() {
    if (this.hidden) return [];
    return this.layers.filter((layer) => layer.kind !== "image" && !this.off.has(layer.name));
  }

  overlayState() {
    return JSON.stringify([this.hidden, this.difference, [...this.off].sort()]);
  }

  isShown(layer, mask) {
    return !this.off.has(`${layer.name}/${mask.bit}`);
  }

  // Bits of label and prediction of a layer of masks, where their difference is asked for.
  differenceOf(layer) {
    if (!this.difference) return null;
    const bit = (role) => layer.masks.find((mask) => mask.role === role);
    const [label, prediction] = [bit("label"), bit("prediction")];
    return label && prediction ? { label: 1 << label.bit, prediction: 1 << prediction.bit } : null;
  }

  levelsOf(layer) {
    return layer.levels;
  }

  shownMarkers() {
    return this.hidden ? [] : this.view.markers.filter((marker) => !this.off.has(`points/${marker.role}`));
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      const drawn = this.planes.map((plane) => [plane.draw(), plane.drawn === plane.index]);
      this._read();
      if (!drawn.every(([, image]) => image)) return;
      if (this.root.dataset.state === "loading") {
        this.root.dataset.state = "first";
        this.root.dataset.firstMs = Math.round(performance.now());
        this._loadVolumes();
      }
      if (drawn.every(([whole]) => whole) && this.overlays().concat(this.image).every((layer) => layer.complete)) {
        if (this.root.dataset.state === "first") this.root.dataset.completeMs = Math.round(performance.now());
        this.root.dataset.state = "complete";
      }
    });
  }

  // -- changes, which peers take over

  moveTo(voxel) {
    this.cursor = voxel.map((at, axis) => Math.min(Math.max(at, 0), this.shape[axis] - 1));
    this._changed();
  }

  scroll(plane, slices) {
    const voxel = [...this.cursor];
    voxel[plane.axis] += slices;
    this.moveTo(voxel);
  }

  setWindow(window) {
    this.window = { ...window };
    this._changed();
  }

  setZoom(zoom) {
    this.zoom = Math.min(Math.max(zoom, ZOOMS[0]), ZOOMS[1]);
    if (this.zoom === ZOOMS[0]) this.planes.forEach((plane) => (plane.pan = [0, 0]));
    this._changed();
  }

  toggle(name) {
    if (this.off.has(name)) this.off.delete(name);
    else this.off.add(name);
    this._loadVolumes();
    this._changed();
  }

  _changed() {
    for (const peer of this.peers) peer._adopt(this);
    this._sync();
    this.redraw();
  }

  _adopt(other) {
    const kept = ["zoom", "opacity", "crosshair", "hidden", "difference"];
    for (const name of kept) this[name] = other[name];
    this.cursor = other.cursor.map((at, axis) => Math.min(at, this.shape[axis] - 1));
    this.window = { ...other.window };
    this.off = new Set(other.off);
    this.planes.forEach((plane, number) => (plane.pan = [...(other.planes[number]?.pan ?? [0, 0])]));
    this._sync();
    this._loadVolumes();
    this.redraw();
  }

  // -- voxels

  async _loadVolumes() {
    if (this.root.dataset.state === "loading") return;
    await this.image.load();
    for (const layer of this.overlays()) await layer.load();
    this.redraw();
  }

  _arrived(layer, error) {
    if (error !== null) {
      this.message.textContent = error.message;
      this.root.dataset.state = "failed";
    }
    this.redraw();
  }

  // -- the page

  _build() {
    this.bar = this.root.appendChild(element("div", { className: "viewer-bar" }));
    this._buildWindows();
    this._buildOverlays();
    const area = this.root.appendChild(element("div", { className: "viewer-planes" }));
    area.dataset.planes = this.view.planes.length;
    this.planes = this.view.planes.map((description) => {
      const holder = area.appendChild(element("figure", { className: "viewer-plane" }));
      const canvas = holder.appendChild(element("canvas", { ariaLabel: `${description.name} slice` }));
      canvas.dataset.plane = description.name;
      const plane = new Plane(this, description, canvas);
      plane.holder = holder;
      plane.caption = holder.appendChild(element("figcaption"));
      this._listen(plane);
      return plane;
    });
    this.active = this.planes[0];
    this.message = this.root.appendChild(element("p", { className: "viewer-message" }));
    if (this.view.note) this.root.append(element("p", { className: "muted", textContent: this.view.note }));
    this._buildBelow();
    new ResizeObserver(() => this.redraw()).observe(area);
    this.root.tabIndex = 0;
    this._sync();
  }

  _buildWindows() {
    const group = this.bar.appendChild(element("div", { className: "viewer-group", role: "group", ariaLabel: "Window" }));
    this.windowButtons = this.windows.map((window, number) => {
      const button = element("button", { type: "button", textContent: window.name, title: `key ${number + 1}` });
      button.addEventListener("click", () => this.setWindow(window));
      return group.appendChild(button);
    });
    this.windowText = group.appendChild(element("span", { className: "muted viewer-level" }));
  }

  _buildOverlays() {
    this.checks = new Map();
    const group = this.bar.appendChild(element("div", { className: "viewer-group", role: "group", ariaLabel: "Overlays" }));
    const check = (name, words, colour, title) => {
      const label = group.appendChild(element("label", { title: title ?? "" }));
      const input = label.appendChild(element("input", { type: "checkbox" }));
      if (colour) {
        const chip = label.appendChild(element("span", { className: "viewer-chip" }));
        chip.style.backgroundColor = colour;
      }
      label.append(words);
      this.checks.set(name, input);
      return input;
    };
    for (const layer of this.layers) {
      if (layer.kind === "scalar") check(layer.name, layer.title).addEventListener("change", () => this.toggle(layer.name));
      for (const mask of layer.masks) {
        const name = `${layer.name}/${mask.bit}`;
        check(name, mask.name, mask.colour).addEventListener("change", () => this.toggle(name));
      }
    }
    this._buildLevels(group);
    for (const role of new Set(this.view.markers.map((marker) => marker.role))) {
      check(`points/${role}`, `points: ${role}`).addEventListener("change", () => this.toggle(`points/${role}`));
    }
    const roles = this.layers.flatMap((layer) => layer.masks.map((mask) => mask.role));
    if (roles.includes("label") && roles.includes("prediction")) {
      const input = check("difference", "difference", null, "key d");
      input.addEventListener("change", () => this._set("difference", input.checked));
      this.legend = group.appendChild(element("span", { className: "viewer-difference" }));
      for (const [words, colour] of [["missed", DIFFERENCE.missed], ["added", DIFFERENCE.added], ["both", DIFFERENCE.both]]) {
        const chip = this.legend.appendChild(element("span", { className: "viewer-legend", textContent: words }));
        chip.style.borderBottomColor = colour;
      }
    }
    if (this.layers.length > 1) {
      const label = group.appendChild(element("label", { textContent: "opacity " }));
      const slider = label.appendChild(element("input", { type: "range", min: 0, max: 100, value: this.opacity * 100 }));
      slider.addEventListener("input", () => this._set("opacity", slider.value / 100));
    }
    const help = this.bar.appendChild(element("details", { className: "viewer-help" }));
    help.append(element("summary", { textContent: "keys" }));
    const list = help.appendChild(element("dl"));
    for (const [key, words] of HELP) list.append(element("dt", { textContent: key }), element("dd", { textContent: words }));
    list.append(element("dt", { textContent: "mouse" }), element("dd", {
      textContent: "wheel: slices; Ctrl and wheel: zoom; drag: crosshair; right: window; middle or Alt: move; double click: one plane alone",
    }));
  }

  // Isodoses are the same for all doses: one legend, in percent of the prescription or in the unit of the layer.
  _buildLevels(group) {
    const layer = this.layers.find((one) => one.levels.length > 1);
    if (!layer) return;
    const legend = group.appendChild(element("span"));
    const chips = layer.levels.map((level) => {
      const chip = legend.appendChild(element("span", { className: "viewer-legend" }));
      chip.style.borderBottomColor = level.colour;
      return chip;
    });
    const button = group.appendChild(element("button", { type: "button", title: `percent of the prescription, or ${layer.unit}` }));
    const write = () => {
      layer.levels.forEach((level, number) => {
        chips[number].textContent = this.percent ? level.text : `${+level.value.toPrecision(3)} ${layer.unit}`;
      });
      button.textContent = this.percent ? `in ${layer.unit}` : "in %";
    };
    button.addEventListener("click", () => {
      this.percent = !this.percent;
      write();
    });
    write();
  }

  _buildBelow() {
    const { charts, tables } = this.view;
    if (!charts.length && !tables.length) return;
    const below = this.root.appendChild(element("div", { className: "viewer-below" }));
    for (const chart of charts) plot(below.appendChild(element("div", { className: "viewer-chart" })), chart);
    for (const table of tables) below.append(tableOf(table));
  }

  _set(name, value) {
    this[name] = value;
    this._changed();
  }

  // Make the controls say what is displayed.
  _sync() {
    const same = (window) => window.low === this.window.low && window.high === this.window.high;
    this.windowButtons.forEach((button, number) => (button.ariaPressed = String(same(this.windows[number]))));
    const [level, width] = [(this.window.low + this.window.high) / 2, this.window.high - this.window.low];
    this.windowText.textContent = `L ${Math.round(level)} W ${Math.round(width)} ${this.image.unit}`;
    for (const [name, input] of this.checks) {
      input.checked = name === "difference" ? this.difference : !this.off.has(name) && !this.hidden;
    }
    if (this.legend) this.legend.hidden = !this.difference;
    for (const plane of this.planes ?? []) plane.holder.classList.toggle("active", plane === this.active && this.planes.length > 1);
  }

  _read() {
    for (const plane of this.planes) {
      const oblique = this.view.oblique_deg ? `, oblique ${this.view.oblique_deg}°` : "";
      plane.caption.textContent = `${plane.name} ${plane.index + 1} / ${plane.n}${oblique}${plane === this.active ? this._values() : ""}`;
    }
  }

  _values() {
    const layers = [this.image, ...this.overlays().filter((layer) => layer.kind === "scalar")];
    const parts = layers.map((layer) => [layer.value(this.cursor), layer]).filter(([value]) => value !== null);
    return parts.map(([value, layer]) => ` · ${layer.title} ${+value.toPrecision(4)} ${layer.unit}`.trimEnd()).join("");
  }

  // -- mouse and keyboard

  _listen(plane) {
    const { canvas } = plane;
    const ratio = () => canvas.width / canvas.getBoundingClientRect().width;
    let wheel = 0;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this._activate(plane);
      if (event.ctrlKey) {
        this.setZoom(this.zoom * Math.exp(-event.deltaY / 300));
        return;
      }
      wheel += event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL_STEP;
      const slices = Math.trunc(wheel / WHEEL_STEP);
      wheel -= slices * WHEEL_STEP;
      if (slices) this.scroll(plane, slices);
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => {
      plane.holder.parentElement.classList.toggle("alone");
      for (const other of this.planes) other.holder.classList.toggle("chosen", other === plane);
      this.redraw();
    });
    canvas.addEventListener("pointerdown", (event) => {
      this._activate(plane);
      this.root.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const action = event.button === 2 ? "window" : event.button === 1 || event.altKey ? "pan" : "point";
      let last = [event.clientX, event.clientY];
      const move = (now) => {
        const [dx, dy] = [now.clientX - last[0], now.clientY - last[1]];
        last = [now.clientX, now.clientY];
        this._drag(plane, action, now, dx, dy, ratio());
      };
      if (action === "point") this._drag(plane, action, event, 0, 0, ratio());
      canvas.addEventListener("pointermove", move);
      canvas.addEventListener("pointerup", () => canvas.removeEventListener("pointermove", move), { once: true });
      event.preventDefault();
    });
  }

  _drag(plane, action, event, dx, dy, ratio) {
    if (action === "point") {
      const box = plane.canvas.getBoundingClientRect();
      this.moveTo(plane.voxelAt((event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio));
    } else if (action === "pan") {
      const { scale } = plane.frame();
      plane.pan = [plane.pan[0] + (dx * ratio) / scale, plane.pan[1] + (dy * ratio) / scale];
      this._changed();
    } else {
      const { low, high } = this.window;
      const step = Math.max((high - low) / 300, 0.01);
      const half = Math.max((high - low) / 2 + dx * step, step);
      const level = (low + high) / 2 + dy * step;
      this.setWindow({ low: level - half, high: level + half });
    }
  }

  _activate(plane) {
    this.active = plane;
    this._sync();
  }

  // Returns whether a key was one of the viewer's.
  key(event) {
    const number = Number(event.key);
    const actions = {
      ArrowUp: () => this.scroll(this.active, -1), ArrowDown: () => this.scroll(this.active, 1),
      PageUp: () => this.scroll(this.active, -10), PageDown: () => this.scroll(this.active, 10),
      ArrowLeft: () => this._next(-1), ArrowRight: () => this._next(1),
      "+": () => this.setZoom(this.zoom * 1.25), "-": () => this.setZoom(this.zoom / 1.25), 0: () => this.setZoom(1),
      l: () => this._toggleRole("label"), p: () => this._toggleRole("prediction"),
      d: () => this._set("difference", !this.difference), o: () => this._set("hidden", !this.hidden),
      x: () => this._set("crosshair", !this.crosshair),
    };
    if (number >= 1 && this.windows[number - 1]) this.setWindow(this.windows[number - 1]);
    else if (event.key in actions) actions[event.key]();
    else return false;
    return true;
  }

  _next(step) {
    const at = this.planes.indexOf(this.active);
    this._activate(this.planes[(at + step + this.planes.length) % this.planes.length]);
    this.redraw();
  }

  _toggleRole(role) {
    for (const layer of this.layers) {
      for (const mask of layer.masks) if (mask.role === role) this.toggle(`${layer.name}/${mask.bit}`);
    }
    if (this.view.markers.some((marker) => marker.role === role)) this.toggle(`points/${role}`);
  }
}

function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

function tableOf({ title, columns, rows }) {
  const holder = element("div", { className: "viewer-table" });
  holder.append(element("h3", { textContent: title }));
  const table = holder.appendChild(element("table"));
  const row = (parent, name, texts) => {
    const line = parent.appendChild(element("tr"));
    for (const words of texts) line.append(element(name, { textContent: words }));
  };
  row(table.appendChild(element("thead")), "th", columns);
  const body = table.appendChild(element("tbody"));
  for (const texts of rows) row(body, "td", texts);
  return holder;
}
