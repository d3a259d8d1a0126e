/**
 * The square an encoder sees: `fit` of protos/pocketlens_wire/pictures.py, bit for bit.
 *
 * Owns the geometry and the resize, which is Pillow's own (src/libImaging/Resample.c): antialiased, two passes,
 * coefficients in fixed point, each pass rounded to 8 bits. A browser's own scaling would give other pixels.
 */

/** A manifest's `picture`. */
export interface PictureSpec {
  side: number;
  fit: "crop" | "squash";
  resample: "bicubic" | "bilinear";
}

/**
 * Upright 8-bit pixels. Pixel (x, y) has its red at data[origin + x * stepX + y * stepY], green and blue after it:
 * a turned or mirrored picture is the same bytes with other steps.
 */
export interface Picture {
  width: number;
  height: number;
  data: Uint8Array | Uint8ClampedArray;
  origin: number;
  stepX: number;
  stepY: number;
}

const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);

interface Filter {
  support: number;
  at(x: number): number;
}

const FILTERS: Record<PictureSpec["resample"], Filter> = {
  bicubic: {
    support: 2,
    at(signed) {
      const a = -0.5;
      const x = Math.abs(signed);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
      return 0;
    },
  },
  bilinear: { support: 1, at: (signed) => Math.max(0, 1 - Math.abs(signed)) },
};

/** Which source pixels make each of `size` pixels along one axis, and with what weight. */
interface Weights {
  first: Int32Array; // (size,)
  count: Int32Array; // (size,)
  weight: Int32Array; // (size, most)
  most: number;
}

/** RGB pixels (side, side, 3), row by row. */
export function fit(picture: Picture, spec: PictureSpec): Uint8Array {
  const { width, height } = picture;
  const side = spec.side;
  let box = [0, 0, width, height];
  if (spec.fit === "crop") {
    const short = Math.min(width, height);
    const [left, top] = [(width - short) / 2, (height - short) / 2];
    box = [left, top, left + short, top + short];
  }
  const filter = FILTERS[spec.resample];
  const across = weigh(width, box[0], box[2], side, filter);
  const down = weigh(height, box[1], box[3], side, filter);
  // Pillow 13 goes down before across where a picture loses far more height than width.
  if (height > side && height - side > 2 * (width - side)) {
    const lying = { ...picture, width: height, height: width, stepX: picture.stepY, stepY: picture.stepX };
    return transposed(twoPasses(lying, down, across, side), side);
  }
  return twoPasses(picture, across, down, side);
}

function twoPasses(picture: Picture, across: Weights, down: Weights, side: number): Uint8Array {
  const top = down.first[0];
  const bottom = down.first[side - 1] + down.count[side - 1];
  return vertically(horizontally(picture, top, bottom, across, side), top, down, side);
}

function transposed(square: Uint8Array, side: number): Uint8Array {
  const out = new Uint8Array(square.length);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const from = (x * side + y) * 3;
      out.set(square.subarray(from, from + 3), (y * side + x) * 3);
    }
  }
  return out;
}

function weigh(size: number, begin: number, end: number, out: number, filter: Filter): Weights {
  const scale = (end - begin) / out;
  const stretch = Math.max(scale, 1); // enlarging needs no wider filter
  const support = filter.support * stretch;
  const most = Math.ceil(support) * 2 + 1;
  const [first, count] = [new Int32Array(out), new Int32Array(out)];
  const weight = new Int32Array(out * most);
  const row = new Float64Array(most);
  for (let at = 0; at < out; at++) {
    const centre = begin + (at + 0.5) * scale;
    const low = Math.max(0, Math.trunc(centre - support + 0.5));
    const taps = Math.min(size, Math.trunc(centre + support + 0.5)) - low;
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      row[tap] = filter.at((tap + low - centre + 0.5) * (1 / stretch));
      sum += row[tap];
    }
    for (let tap = 0; tap < taps; tap++) {
      const share = (sum === 0 ? row[tap] : row[tap] / sum) * (1 << PRECISION_BITS);
      weight[at * most + tap] = Math.trunc(share + (share < 0 ? -0.5 : 0.5));
    }
    first[at] = low;
    count[at] = taps;
  }
  return { first, count, weight, most };
}

const clip = (sum: number) => Math.max(0, Math.min(255, sum >> PRECISION_BITS));

/** Rows `top` to `bottom` of the picture, each `side` pixels wide, RGB. */
function horizontally(picture: Picture, top: number, bottom: number, weights: Weights, side: number): Uint8Array {
  const { data, origin, stepX, stepY } = picture;
  const { first, count, weight, most } = weights;
  const out = new Uint8Array((bottom - top) * side * 3);
  let to = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = 0; x < side; x++) {
      let [red, green, blue] = [HALF, HALF, HALF];
      let from = origin + y * stepY + first[x] * stepX;
      for (let k = x * most, end = k + count[x]; k < end; k++, from += stepX) {
        red += data[from] * weight[k];
        green += data[from + 1] * weight[k];
        blue += data[from + 2] * weight[k];
      }
      out[to++] = clip(red);
      out[to++] = clip(green);
      out[to++] = clip(blue);
    }
  }
  return out;
}

function vertically(rows: Uint8Array, top: number, weights: Weights, side: number): Uint8Array {
  const { first, count, weight, most } = weights;
  const out = new Uint8Array(side * side * 3);
  const line = side * 3;
  for (let y = 0; y < side; y++) {
    for (let at = 0; at < line; at++) {
      let sum = HALF;
      let from = (first[y] - top) * line + at;
      for (let k = y * most, end = k + count[y]; k < end; k++, from += line) sum += rows[from] * weight[k];
      out[y * line + at] = clip(sum);
    }
  }
  return out;
}
