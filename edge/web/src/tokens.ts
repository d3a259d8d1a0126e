/**
 * Sentence tokens to wire bytes: int8 of protos/pocketlens_wire/tokens.py, byte for byte.
 *
 * int8 is what the page sends and nothing else; docs/wire.md has the layout.
 */

import { create } from "@bufbuild/protobuf";

import { badQuery } from "./errors";
import { SentenceSchema, TokenEncoding, type Sentence } from "./gen/pocketlens_wire/v1/retrieval_pb";

const LEVELS = 127;
const MAX_TOKEN_NORM = 1e4;
const SMALLEST_SCALE = 2 ** -126; // smallest normal float32

/** Wire form of `count` tokens of `width` numbers each, row by row. Throws BadQuery for what must not be sent. */
export function pack(tokens: Float32Array, count: number, width: number): Sentence {
  const data = new Int8Array(count * width);
  const scales = new DataView(new ArrayBuffer(4 * count));
  for (let row = 0; row < count; row++) {
    const token = tokens.subarray(row * width, (row + 1) * width);
    check(token, row);
    const peak = token.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const usable = peak / LEVELS >= SMALLEST_SCALE;
    const scale = Math.fround(usable ? peak / LEVELS : 1);
    scales.setFloat32(4 * row, scale, true);
    token.forEach((value, at) => (data[row * width + at] = Math.max(-LEVELS, Math.min(LEVELS, toEven(value / scale)))));
  }
  return create(SentenceSchema, {
    encoding: TokenEncoding.INT8,
    count,
    width,
    data: new Uint8Array(data.buffer),
    scales: new Uint8Array(scales.buffer),
  });
}

function check(token: Float32Array, row: number): void {
  let squares = 0;
  token.forEach((value, at) => {
    if (!Number.isFinite(value)) throw badQuery(`Token ${row} holds ${value} at position ${at}; all must be finite.`);
    squares += value * value;
  });
  // 1e-6: as the server allows, which sees numbers rounded to float32
  if (Math.sqrt(squares) > MAX_TOKEN_NORM * (1 + 1e-6)) throw badQuery(`Token ${row} is longer than ${MAX_TOKEN_NORM}.`);
}

/** Nearest whole number, ties to the even one. */
function toEven(value: number): number {
  const low = Math.floor(value);
  const above = value - low;
  if (above !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}
