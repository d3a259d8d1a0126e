/**
 * What pixels a picture is: `open_picture` of protos/pocketlens_wire/pictures.py in a browser.
 *
 * Owns the limits, decoding, alpha on white, 16 bit and greyscale to 8 bit RGB, and turning by EXIF. PNG is decoded
 * here, because a canvas multiplies by alpha and rounds; the other formats by the browser, told to leave colours and
 * orientation alone. A browser has no TIFF and no PPM: those are refused with a sentence.
 */

import { decode as decodePng, type DecodedPng } from "fast-png";

import { badPicture, PocketlensError } from "./errors";
import type { Picture } from "./fit";
import { formatOf, readHeader, type Header } from "./header";

export const MAX_PIXELS = 50_000_000;
export const MIN_SIDE = 8;
export const MAX_FILE_BYTES = 512 * 1024 * 1024;

const BAND = 512; // rows read from a canvas at once: phones allow only small ones

const TYPES = { JPEG: "image/jpeg", WEBP: "image/webp", GIF: "image/gif", BMP: "image/bmp" } as const;

/** Decode a picture file: RGB, 8 bit, upright, on white. Throws BadPicture, calling it `name`. */
export async function openPicture(file: Uint8Array, name: string): Promise<Picture> {
  checkFile(file, name);
  const format = formatOf(file);
  if (!format) throw badPicture(`${name}: not a picture of a known kind. Take a JPEG, PNG, WEBP, GIF or BMP.`);
  if (format === "TIFF" || format === "PPM") {
    throw badPicture(`${name}: browsers cannot read ${format}. Save it as PNG or JPEG, or ask with pocketlens-edge.`);
  }
  try {
    const header = readHeader(file, format);
    checkSize(header.width, header.height, name);
    const pixels = format === "PNG" ? fromPng(file) : await byBrowser(withoutTurn(file, header), TYPES[format], name);
    return turn(pixels, header.orientation);
  } catch (error) {
    if (error instanceof PocketlensError) throw error;
    const why = error instanceof RangeError ? "the file ends too early" : error instanceof Error ? error.message : String(error);
    throw badPicture(`${name}: the ${format} data is truncated or broken (${why}). Copy or download it again.`);
  }
}

function checkFile(file: Uint8Array, name: string): void {
  if (file.length === 0) throw badPicture(`${name}: the file is empty. Copy or download it again.`);
  if (file.length > MAX_FILE_BYTES) {
    const [has, limit] = [file.length, MAX_FILE_BYTES].map((bytes) => Math.round(bytes / 2 ** 20));
    throw badPicture(`${name}: the file has ${has} MiB; the limit is ${limit} MiB. Save it compressed, for example as JPEG.`);
  }
}

function checkSize(width: number, height: number, name: string): void {
  const size = `${name}: ${width} x ${height}`;
  if (width * height > MAX_PIXELS) {
    const has = ((width * height) / 1e6).toFixed(1);
    throw badPicture(`${size} is ${has} megapixels; the limit is ${MAX_PIXELS / 1e6} megapixels. Scale it down first.`);
  }
  if (Math.min(width, height) < MIN_SIDE) {
    throw badPicture(
      `${size} pixels is too small to show anything; each side needs at least ${MIN_SIDE} pixels. Use a larger version.`,
    );
  }
}

// --- by the browser

/** The file with its orientation said to be 1: browsers differ in whether they turn, so that none does. */
function withoutTurn(file: Uint8Array, header: Header): Uint8Array {
  if (!header.orientationAt || header.orientation === 1) return file;
  const copy = file.slice();
  const { offset, bytes, little } = header.orientationAt;
  copy.fill(0, offset, offset + bytes);
  copy[little ? offset : offset + bytes - 1] = 1;
  return copy;
}

async function byBrowser(file: Uint8Array, type: string, name: string): Promise<Picture> {
  let bitmap: ImageBitmap;
  try {
    // Alpha is multiplied in once, by the canvas: done here it would be rounded twice.
    const asItIs: ImageBitmapOptions = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(new Blob([file as Uint8Array<ArrayBuffer>], { type }), asItIs);
  } catch {
    throw badPicture(`${name}: this browser cannot decode the picture. Copy or download it again, or save it as PNG.`);
  }
  try {
    checkSize(bitmap.width, bitmap.height, name); // the header may have lied
    return read(bitmap);
  } finally {
    bitmap.close();
  }
}

function read(bitmap: ImageBitmap): Picture {
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 4);
  const canvas = new OffscreenCanvas(width, Math.min(height, BAND));
  const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  if (!pen) throw badPicture("This browser gives no canvas to read pictures with.");
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#fff";
  for (let top = 0; top < height; top += BAND) {
    const rows = Math.min(BAND, height - top);
    pen.fillRect(0, 0, width, rows);
    pen.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    data.set(pen.getImageData(0, 0, width, rows).data, top * width * 4);
  }
  return { width, height, data, origin: 0, stepX: 4, stepY: width * 4 };
}

// --- PNG

function fromPng(file: Uint8Array): Picture {
  const png = decodePng(file, { checkCrc: true });
  const { width, height, channels } = png;
  if (png.depth === 8 && channels >= 3 && !png.palette && !png.transparency) {
    const data = png.data as Uint8Array; // the usual kind, for which copying would double the memory
    if (channels === 4) overWhite(data);
    return { width, height, data, origin: 0, stepX: channels, stepY: width * channels };
  }
  const data = new Uint8Array(width * height * 3);
  const pixel = reader(png);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 3) {
      const [red, green, blue, alpha] = pixel(x, y);
      data[to] = onWhite(red, alpha);
      data[to + 1] = onWhite(green, alpha);
      data[to + 2] = onWhite(blue, alpha);
    }
  }
  return { width, height, data, origin: 0, stepX: 3, stepY: width * 3 };
}

/** RGBA pixels in place; their alpha stays as it was. */
function overWhite(data: Uint8Array): void {
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3];
    if (alpha !== 255) for (let i = at; i < at + 3; i++) data[i] = onWhite(data[i], alpha);
  }
}

/** One number over white, as Pillow's paste rounds it. */
function onWhite(value: number, alpha: number): number {
  if (alpha === 255) return value;
  const sum = 255 * (255 - alpha) + value * alpha + 128;
  return ((sum >> 8) + sum) >> 8;
}

/** A function from (x, y) to [red, green, blue, alpha], 8 bit. The array is the same at each call. */
function reader(png: DecodedPng): (x: number, y: number) => Uint8Array {
  const { width, data, depth, channels, palette, transparency } = png;
  const out = new Uint8Array(4).fill(255);
  if (palette) {
    const index = sampler(png);
    return (x, y) => {
      const colour = palette[index(x, y)];
      if (!colour) throw new Error("a colour is not in its palette");
      out.set(colour);
      if (colour.length === 3) out[3] = 255;
      return out;
    };
  }
  if (channels === 1) {
    const sample = sampler(png);
    const most = 2 ** depth - 1;
    // 16 bit greyscale is rounded to 8, all else of 16 bit loses its low byte: so Pillow reads them.
    const grey = depth === 16 ? (value: number) => Math.floor((value + 128) / 257) : (value: number) => (value * 255) / most;
    return (x, y) => {
      const value = sample(x, y);
      out.fill(grey(value), 0, 3);
      out[3] = transparency && depth === 8 && value === transparency[0] ? 0 : 255;
      return out;
    };
  }
  const shift = depth === 16 ? 8 : 0;
  return (x, y) => {
    const at = (y * width + x) * channels;
    const colours = channels > 2 ? 3 : 1;
    for (let i = 0; i < 3; i++) out[i] = data[at + (colours === 3 ? i : 0)] >> shift;
    out[3] = channels === colours + 1 ? data[at + colours] >> shift : 255;
    if (transparency && channels === 3) {
      const clear = [0, 1, 2].every((i) => data[at + i] === transparency[i]);
      out[3] = clear ? 0 : 255;
    }
    return out;
  };
}

/** A function from (x, y) to the one number there; numbers of less than 8 bits stand several in a byte. */
function sampler({ data, width, depth }: DecodedPng): (x: number, y: number) => number {
  if (depth >= 8) return (x, y) => data[y * width + x];
  const line = Math.ceil((width * depth) / 8);
  const mask = 2 ** depth - 1;
  return (x, y) => {
    const bit = x * depth;
    return (data[y * line + (bit >> 3)] >> (8 - depth - (bit & 7))) & mask;
  };
}

// --- turning

/** The picture as EXIF's orientation 1 to 8 wants it seen: the same bytes, walked in another order. */
function turn(picture: Picture, orientation: number): Picture {
  const { width, height, data, origin, stepX, stepY } = picture;
  const right = (width - 1) * stepX;
  const bottom = (height - 1) * stepY;
  const [corner, along, down] = {
    1: [0, stepX, stepY],
    2: [right, -stepX, stepY],
    3: [right + bottom, -stepX, -stepY],
    4: [bottom, stepX, -stepY],
    5: [0, stepY, stepX],
    6: [bottom, -stepY, stepX],
    7: [right + bottom, -stepY, -stepX],
    8: [right, stepY, -stepX],
  }[orientation as 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8] ?? [0, stepX, stepY];
  const lies = orientation >= 5;
  return {
    width: lies ? height : width,
    height: lies ? width : height,
    data,
    origin: origin + corner,
    stepX: along,
    stepY: down,
  };
}
