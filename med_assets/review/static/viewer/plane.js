// One plane on a canvas: the image, its overlays, points, crosshair, letters and scale.

import { isoline, outline } from "./contours.js";

const BACKGROUND = "#000";
const LETTER = "#ffe08a";
export const DIFFERENCE = { missed: "#ff4dd2", added: "#ffb000", both: "#3df59b" };
const NEAR_MM = 20; // a point shows on slices as near as this, faintly where it is not on the slice itself

export class Plane {
  constructor(viewer, description, canvas) {
    this.viewer = viewer;
    this.canvas = canvas;
    Object.assign(this, description);
    const shape = viewer.shape;
    this.nRows = shape[this.rows.axis];
    this.nColumns = shape[this.columns.axis];
    this.n = shape[this.axis];
    this.calibrated = this.rows.spacing_mm !== null && this.columns.spacing_mm !== null;
    this.rowMm = this.calibrated ? this.rows.spacing_mm : 1; // else pixels are square
    this.columnMm = this.calibrated ? this.columns.spacing_mm : 1;
    this.grey = surface(this.nColumns, this.nRows);
    this.over = surface(this.nColumns, this.nRows);
    this.pan = [0, 0];
    this.drawnGrey = "";
    this.drawnOver = "";
    this.paths = [];
    this.drawn = -1; // index of the slice whose image is on the canvas
  }

  get index() {
    return this.viewer.cursor[this.axis];
  }

  // A slice with its rows and columns as they are displayed; null while it is on its way.
  oriented(layer, index = this.index) {
    const values = layer.slice(this.axis, index);
    if (values === null) return null;
    const rowsFirst = this.rows.axis < this.columns.axis;
    if (rowsFirst && !this.rows.flipped && !this.columns.flipped) return values;
    const { nRows, nColumns } = this;
    const turned = new values.constructor(values.length);
    for (let r = 0; r < nRows; r++) {
      const row = this.rows.flipped ? nRows - 1 - r : r;
      for (let c = 0; c < nColumns; c++) {
        const column = this.columns.flipped ? nColumns - 1 - c : c;
        turned[r * nColumns + c] = values[rowsFirst ? row * nColumns + column : column * nRows + row];
      }
    }
    return turned;
  }

  // Pixels of the canvas per pixel of the slice, and where its upper left corner lies.
  frame() {
    const { width, height } = this.canvas;
    const fit = Math.min(width / (this.nColumns * this.columnMm), height / (this.nRows * this.rowMm));
    const scale = fit * this.viewer.zoom;
    const sx = scale * this.columnMm;
    const sy = scale * this.rowMm;
    return {
      sx, sy, scale,
      x: (width - this.nColumns * sx) / 2 + this.pan[0] * scale,
      y: (height - this.nRows * sy) / 2 + this.pan[1] * scale,
    };
  }

  // Row and column of the slice at a point of the canvas, as fractions from its upper left corner.
  at(px, py) {
    const { sx, sy, x, y } = this.frame();
    return [(py - y) / sy, (px - x) / sx];
  }

  voxelAt(px, py) {
    const [r, c] = this.at(px, py).map(Math.floor);
    const voxel = [...this.viewer.cursor];
    const put = (side, at, n) => {
      const inside = Math.min(Math.max(at, 0), n - 1);
      voxel[side.axis] = side.flipped ? n - 1 - inside : inside;
    };
    put(this.rows, r, this.nRows);
    put(this.columns, c, this.nColumns);
    return voxel;
  }

  // Point of the canvas of a voxel's centre.
  pointOf(voxel) {
    const { sx, sy, x, y } = this.frame();
    const place = (side, n) => (side.flipped ? n - 1 - voxel[side.axis] : voxel[side.axis]) + 0.5;
    return [x + place(this.columns, this.nColumns) * sx, y + place(this.rows, this.nRows) * sy];
  }

  draw() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(box.width * ratio));
    const height = Math.max(1, Math.round(box.height * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const image = this.viewer.image;
    if (!this._drawGrey(image)) return false;
    const overlaid = this._drawOverlays();
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = BACKGROUND;
    context.fillRect(0, 0, width, height);
    const { sx, sy, x, y, scale } = this.frame();
    context.setTransform(sx, 0, 0, sy, x, y);
    context.imageSmoothingEnabled = image.smooth;
    context.drawImage(this.grey, 0, 0);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.viewer.opacity;
    context.drawImage(this.over, 0, 0);
    context.globalAlpha = 1;
    for (const [path, colour, dashed] of this.paths) this._stroke(context, path, colour, dashed, sx, sy);
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (this.viewer.crosshair) this._drawCrosshair(context);
    this._drawMarkers(context);
    this._drawLetters(context);
    this._drawScale(context, scale);
    this.drawn = this.index;
    return overlaid;
  }

  _drawGrey(image) {
    const { low, high } = this.viewer.window;
    const wanted = `${this.index} ${low} ${high}`;
    if (wanted === this.drawnGrey) return true;
    const values = this.oriented(image);
    if (values === null) return false;
    const context = this.grey.getContext("2d");
    const pixels = context.createImageData(this.nColumns, this.nRows);
    const data = new Uint32Array(pixels.data.buffer);
    const gain = (255 * image.slope) / Math.max(high - low, 1e-9);
    const offset = ((image.intercept - low) * 255) / Math.max(high - low, 1e-9);
    for (let i = 0; i < data.length; i++) {
      const grey = values[i] * gain + offset;
      const level = grey <= 0 ? 0 : grey >= 255 ? 255 : grey | 0;
      data[i] = 0xff000000 | (level << 16) | (level << 8) | level;
    }
    context.putImageData(pixels, 0, 0);
    this.drawnGrey = wanted;
    return true;
  }

  // Whether all overlays are drawn; those on their way are drawn when they arrive.
  _drawOverlays() {
    const shown = this.viewer.overlays();
    const wanted = `${this.index} ${this.viewer.overlayState()}`;
    if (wanted === this.drawnOver) return true;
    const slices = shown.map((layer) => this.oriented(layer));
    const context = this.over.getContext("2d");
    const pixels = context.createImageData(this.nColumns, this.nRows);
    this.paths = [];
    shown.forEach((layer, number) => {
      const values = slices[number];
      if (values === null) return;
      if (layer.kind === "masks") this._masks(layer, values, pixels.data);
      else this._scalar(layer, values, pixels.data);
    });
    context.putImageData(pixels, 0, 0);
    const whole = !slices.includes(null);
    this.drawnOver = whole ? wanted : "";
    return whole;
  }

  _masks(layer, values, data) {
    const difference = this.viewer.differenceOf(layer);
    const fills = [];
    if (difference) {
      const { label, prediction } = difference;
      fills.push([label | prediction, label, DIFFERENCE.missed], [label | prediction, prediction, DIFFERENCE.added]);
      fills.push([label | prediction, label | prediction, DIFFERENCE.both]);
      for (const bit of [label, prediction]) {
        const colour = bit === label ? DIFFERENCE.both : DIFFERENCE.added;
        this.paths.push([outline(values, this.nRows, this.nColumns, bit), colour, false]);
      }
    } else {
      for (const mask of layer.masks.filter((one) => this.viewer.isShown(layer, one))) {
        const bit = 1 << mask.bit;
        if (mask.filled) fills.push([bit, bit, mask.colour]);
        this.paths.push([outline(values, this.nRows, this.nColumns, bit), mask.colour, mask.role === "prediction"]);
      }
    }
    for (const [among, equal, colour] of fills) {
      const [red, green, blue] = rgb(colour);
      const alpha = difference && equal === among ? 60 : 140;
      for (let i = 0; i < values.length; i++) {
        if ((values[i] & among) !== equal) continue;
        const at = i * 4;
        data[at] = red;
        data[at + 1] = green;
        data[at + 2] = blue;
        data[at + 3] = alpha;
      }
    }
  }

  _scalar(layer, values, data) {
    const raw = (value) => (value - layer.intercept) / layer.slope;
    for (const level of this.viewer.levelsOf(layer)) {
      this.paths.push([isoline(values, this.nRows, this.nColumns, raw(level.value)), level.colour, false]);
    }
    const span = layer.high - layer.low || 1;
    const colourOf = layer.palette === "diverging" ? diverging : heat;
    for (let i = 0; i < values.length; i++) {
      const share = (values[i] * layer.slope + layer.intercept - layer.low) / span;
      const [red, green, blue, alpha] = colourOf(Math.min(Math.max(share, 0), 1));
      if (alpha === 0) continue;
      const at = i * 4;
      data[at] = red;
      data[at + 1] = green;
      data[at + 2] = blue;
      data[at + 3] = alpha;
    }
  }

  _stroke(context, path, colour, dashed, sx, sy) {
    const width = 1.4 * (window.devicePixelRatio || 1);
    context.save();
    context.strokeStyle = colour;
    context.lineWidth = width / Math.sqrt(sx * sy);
    if (dashed) context.setLineDash([4 / sx, 2 / sx]);
    context.stroke(path);
    context.restore();
  }

  _drawCrosshair(context) {
    const [x, y] = this.pointOf(this.viewer.cursor).map((at) => Math.round(at) + 0.5);
    const gap = 9;
    context.strokeStyle = "rgba(120, 190, 255, 0.55)";
    context.lineWidth = 1;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [
      [0, y, x - gap, y], [x + gap, y, this.canvas.width, y], [x, 0, x, y - gap], [x, y + gap, x, this.canvas.height],
    ]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  _drawMarkers(context) {
    const ratio = window.devicePixelRatio || 1;
    const spacing = this.viewer.spacing?.[this.axis] ?? 1;
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const marker of this.viewer.shownMarkers()) {
      const away = Math.abs(marker.voxel[this.axis] - this.index) * spacing;
      if (away > NEAR_MM) continue;
      const [x, y] = this.pointOf(marker.voxel);
      const colour = { label: "#3df59b", prediction: "#ffb000", "second peak": "#ff4dd2" }[marker.role] ?? "#fff";
      context.globalAlpha = away <= spacing / 2 ? 1 : 0.45;
      context.strokeStyle = colour;
      context.fillStyle = colour;
      context.lineWidth = 1.6 * ratio;
      const radius = 5 * ratio;
      context.beginPath();
      if (marker.role === "label") context.arc(x, y, radius, 0, 2 * Math.PI);
      else {
        context.moveTo(x - radius, y - radius);
        context.lineTo(x + radius, y + radius);
        context.moveTo(x + radius, y - radius);
        context.lineTo(x - radius, y + radius);
      }
      context.stroke();
      context.textAlign = marker.role === "label" ? "right" : "left";
      text(context, marker.text, x + (marker.role === "label" ? -9 : 9) * ratio, y, colour);
      context.globalAlpha = 1;
    }
  }

  _drawLetters(context) {
    if (!this.letters.length) return;
    const ratio = window.devicePixelRatio || 1;
    const [left, right, up, down] = this.letters;
    const { width, height } = this.canvas;
    context.font = `600 ${14 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const edge = 12 * ratio;
    text(context, left, edge, height / 2, LETTER);
    text(context, right, width - edge, height / 2, LETTER);
    text(context, up, width / 2, edge, LETTER);
    text(context, down, width / 2, height - edge, LETTER);
  }

  _drawScale(context, scale) {
    if (!this.calibrated) return;
    const ratio = window.devicePixelRatio || 1;
    const mm = [1, 2, 5, 10, 20, 50, 100].findLast((length) => length * scale <= this.canvas.width / 4) ?? 1;
    const x = 26 * ratio;
    const y = this.canvas.height - 22 * ratio;
    context.fillStyle = LETTER;
    context.fillRect(x, y, mm * scale, 2 * ratio);
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.textBaseline = "bottom";
    text(context, `${mm} mm`, x, y - 2 * ratio, LETTER);
  }
}

function surface(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function text(context, words, x, y, colour) {
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineJoin = "round";
  context.strokeText(words, x, y);
  context.fillStyle = colour;
  context.fillText(words, x, y);
}

export function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// Blue, green, yellow, red; nothing at the lowest value.
function heat(share) {
  if (share <= 0.05) return [0, 0, 0, 0];
  const stops = [[48, 64, 200], [0, 160, 190], [60, 200, 90], [250, 220, 60], [255, 140, 30], [220, 30, 40]];
  const place = share * (stops.length - 1);
  const number = Math.min(Math.floor(place), stops.length - 2);
  const part = place - number;
  const mixed = stops[number].map((value, channel) => value + (stops[number + 1][channel] - value) * part);
  return [...mixed, Math.min(255, 40 + share * 160)];
}

// Blue below the middle and red above it; nothing at the middle.
function diverging(share) {
  const off = share * 2 - 1;
  const alpha = Math.min(220, Math.abs(off) * 400);
  if (alpha < 12) return [0, 0, 0, 0];
  return off > 0 ? [230, 50, 40, alpha] : [50, 110, 240, alpha];
}
