// Voxels of one layer: single slices are fetched as they are needed, and replaced by the whole volume once it has arrived.

const ARRAYS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array };
const HEADER_BYTES = 352; // of NIfTI-1
const MOST_BYTES = 1.2e9; // larger volumes are read slice by slice
const MOST_SLICES = 64; // kept of those that were fetched one by one

export class Layer {
  constructor(description, shape, arrived) {
    Object.assign(this, description);
    this.shape = shape;
    this.arrived = arrived;
    this.Array = ARRAYS[this.dtype];
    this.bytes = shape.reduce((product, side) => product * side, this.Array.BYTES_PER_ELEMENT);
    this.loaded = 0;
    this.slices = new Map();
    this.fetching = new Map();
    this.started = null;
  }

  get complete() {
    return this.loaded === HEADER_BYTES + this.bytes;
  }

  // The voxels of a slice, in the order of the other two axes; null while they are on their way.
  slice(axis, index) {
    const sides = this.shape.filter((_, other) => other !== axis);
    const n = sides[0] * sides[1];
    if (axis === 0 && this.loaded >= HEADER_BYTES + (index + 1) * n * this.Array.BYTES_PER_ELEMENT) {
      return this.voxels.subarray(index * n, (index + 1) * n);
    }
    if (this.complete) return this._cut(axis, index, n);
    const key = `${axis}/${index}`;
    const kept = this.slices.get(key);
    if (kept === undefined) this._fetch(axis, index, key);
    return kept ?? null;
  }

  // Fetch the whole volume, once.
  load() {
    if (this.started === null) this.started = this.bytes > MOST_BYTES ? Promise.resolve() : this._load();
    return this.started;
  }

  value(voxel) {
    const [z, y, x] = voxel;
    const found = this.slice(0, z);
    return found === null ? null : found[y * this.shape[2] + x] * this.slope + this.intercept;
  }

  _cut(axis, index, n) {
    const [nz, ny, nx] = this.shape;
    const cut = new this.Array(n);
    if (axis === 1) {
      for (let z = 0; z < nz; z++) {
        const from = (z * ny + index) * nx;
        cut.set(this.voxels.subarray(from, from + nx), z * nx);
      }
      return cut;
    }
    for (let at = 0, from = index; at < n; at++, from += nx) cut[at] = this.voxels[from];
    return cut;
  }

  async _fetch(axis, index, key) {
    if (this.fetching.has(key)) return;
    // Of slices along an axis only the last that was asked for is of use: who scrolls on waits for no other.
    for (const [other, controller] of this.fetching) {
      if (other.startsWith(`${axis}/`)) controller.abort();
    }
    const controller = new AbortController();
    this.fetching.set(key, controller);
    try {
      const address = this.address.replace("AXIS", axis).replace("INDEX", index);
      const answer = await fetch(address, { signal: controller.signal });
      if (!answer.ok) throw new Error(`${this.title}: the server answered ${answer.status}`);
      this.slices.set(key, new this.Array(await answer.arrayBuffer()));
      if (this.slices.size > MOST_SLICES) this.slices.delete(this.slices.keys().next().value);
      this.arrived(this, null);
    } catch (error) {
      if (error.name !== "AbortError") this.arrived(this, error);
    } finally {
      this.fetching.delete(key);
    }
  }

  async _load() {
    try {
      const answer = await fetch(this.volume);
      if (!answer.ok) throw new Error(`${this.title}: the server answered ${answer.status}`);
      const all = new Uint8Array(HEADER_BYTES + this.bytes);
      this.voxels = new this.Array(all.buffer, HEADER_BYTES);
      const reader = answer.body.getReader();
      let at = 0;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        all.set(value, at);
        at += value.length;
        this.loaded = at;
      }
      if (!this.complete) throw new Error(`${this.title}: expected ${all.length} bytes, got ${at}`);
      this.slices.clear();
      this.arrived(this, null);
    } catch (error) {
      this.loaded = 0;
      this.arrived(this, error);
    }
  }
}
