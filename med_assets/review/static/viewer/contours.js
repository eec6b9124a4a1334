// Lines over a slice, as paths in pixels of the slice: (0, 0) is the upper left corner of its first pixel.

// Where a quantity passes a value, interpolated between pixel centres (marching squares).
export function isoline(values, rows, columns, value) {
  const path = new Path2D();
  for (let r = 0; r + 1 < rows; r++) {
    for (let c = 0; c + 1 < columns; c++) {
      const at = r * columns + c;
      const a = values[at] - value;
      const b = values[at + 1] - value;
      const d = values[at + columns] - value;
      const e = values[at + columns + 1] - value;
      const which = (a >= 0 ? 1 : 0) | (b >= 0 ? 2 : 0) | (e >= 0 ? 4 : 0) | (d >= 0 ? 8 : 0);
      if (which === 0 || which === 15) continue;
      const x = c + 0.5;
      const y = r + 0.5;
      const top = () => [x + a / (a - b), y];
      const right = () => [x + 1, y + b / (b - e)];
      const bottom = () => [x + d / (d - e), y + 1];
      const left = () => [x, y + a / (a - d)];
      const line = (from, to) => {
        path.moveTo(...from);
        path.lineTo(...to);
      };
      switch (which) {
        case 1: case 14: line(left(), top()); break;
        case 2: case 13: line(top(), right()); break;
        case 4: case 11: line(right(), bottom()); break;
        case 8: case 7: line(bottom(), left()); break;
        case 3: case 12: line(left(), right()); break;
        case 6: case 9: line(top(), bottom()); break;
        default: { // two opposite corners are above: the mean of all four says whether they are connected
          const connected = a + b + d + e >= 0;
          if ((which === 5) === connected) {
            line(top(), right());
            line(bottom(), left());
          } else {
            line(left(), top());
            line(right(), bottom());
          }
        }
      }
    }
  }
  return path;
}

// The edges of the pixels that have a bit, where the neighbour lacks it.
export function outline(bits, rows, columns, bit) {
  const path = new Path2D();
  const inside = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && (bits[r * columns + c] & bit) !== 0;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      if ((bits[r * columns + c] & bit) === 0) continue;
      if (!inside(r - 1, c)) { path.moveTo(c, r); path.lineTo(c + 1, r); }
      if (!inside(r + 1, c)) { path.moveTo(c, r + 1); path.lineTo(c + 1, r + 1); }
      if (!inside(r, c - 1)) { path.moveTo(c, r); path.lineTo(c, r + 1); }
      if (!inside(r, c + 1)) { path.moveTo(c + 1, r); path.lineTo(c + 1, r + 1); }
    }
  }
  return path;
}
