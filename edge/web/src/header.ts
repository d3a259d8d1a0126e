/**
 * What a picture file says of itself before anything is decoded: format, size, orientation.
 *
 * Owns the first bytes and the metadata of JPEG, PNG, WEBP, GIF and BMP. Knows no pixels.
 */

export type Format = "JPEG" | "PNG" | "WEBP" | "GIF" | "BMP" | "TIFF" | "PPM";

export interface Header {
  width: number;
  height: number;
  /** EXIF's 1 to 8; 1 also where nothing readable is said. */
  orientation: number;
  /** Where the orientation stands in the file, so that it can be overwritten; null if nowhere. */
  orientationAt: { offset: number; bytes: number; little: boolean } | null;
}

/** Format by the first bytes; a file's name decides nothing. Null for what is no picture. */
export function formatOf(file: Uint8Array): Format | null {
  const text = latin(file, 0, 16);
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WEBP";
  if (/^GIF8[79]a/.test(text)) return "GIF";
  if (text.startsWith("BM")) return "BMP";
  if (text.startsWith("II*\0") || text.startsWith("MM\0*")) return "TIFF";
  if (/^P[1-6][\n \r\t]/.test(text)) return "PPM";
  return null;
}

/** Size and orientation. Throws RangeError (an end before its time) or Error for a header that is broken. */
export function readHeader(file: Uint8Array, format: Format): Header {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  switch (format) {
    case "JPEG":
      return jpeg(file, view);
    case "PNG":
      return png(file, view);
    case "WEBP":
      return webp(file, view);
    case "GIF":
      return upright(view.getUint16(6, true), view.getUint16(8, true));
    case "BMP":
      return bmp(view);
    default:
      throw new Error(`${format} is not read here`);
  }
}

const latin = (file: Uint8Array, from: number, to: number) =>
  Array.from(file.subarray(from, to), (byte) => String.fromCharCode(byte)).join("");

const upright = (width: number, height: number): Header => ({ width, height, orientation: 1, orientationAt: null });

function jpeg(file: Uint8Array, view: DataView): Header {
  let size: [number, number] | null = null;
  const said: Said[] = [];
  let at = 2;
  for (;;) {
    while (view.getUint8(at) !== 0xff) at++; // stray bytes between segments are passed over, as decoders do
    while (view.getUint8(at) === 0xff) at++;
    const marker = view.getUint8(at++);
    if (marker === 0xd8 || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd7)) continue;
    if (marker === 0xd9) throw new Error("it holds no pixels");
    const length = view.getUint16(at);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) size = [view.getUint16(at + 5), view.getUint16(at + 3)];
    if (marker === 0xe1) {
      if (latin(file, at + 2, at + 8) === "Exif\0\0") said.push(exif(view, at + 8, at + length));
      else if (latin(file, at + 2, at + 31) === "http://ns.adobe.com/xap/1.0/\0") said.push(xmp(file, at + 31, at + length));
    }
    if (marker === 0xda) break;
    at += length;
  }
  if (!size) throw new Error("it has no frame header");
  // A browser paints what there is of a file cut short; the device refuses it.
  if (!hasEnd(file, at)) throw new Error("the file ends before the picture does");
  return turned(size[0], size[1], said);
}

function hasEnd(file: Uint8Array, from: number): boolean {
  for (let at = file.length - 2; at >= from; at--) if (file[at] === 0xff && file[at + 1] === 0xd9) return true;
  return false;
}

function png(file: Uint8Array, view: DataView): Header {
  if (latin(file, 12, 16) !== "IHDR") throw new Error("it does not begin with its header");
  const said: Said[] = [];
  for (let at = 8; at + 8 <= file.length; ) {
    const [length, name] = [view.getUint32(at), latin(file, at + 4, at + 8)];
    if (name === "eXIf") said.push(exif(view, at + 8, at + 8 + length));
    if (name === "iTXt" && latin(file, at + 8, at + 26) === "XML:com.adobe.xmp\0") said.push(xmp(file, at + 26, at + 8 + length));
    at += length + 12;
  }
  return turned(view.getUint32(16), view.getUint32(20), said);
}

function webp(file: Uint8Array, view: DataView): Header {
  const kind = latin(file, 12, 16);
  if (kind === "VP8 ") return upright(view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff);
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return upright((bits & 0x3fff) + 1, ((bits >>> 14) & 0x3fff) + 1);
  }
  if (kind !== "VP8X") throw new Error("its first chunk is of no known kind");
  const said: Said[] = [];
  for (let at = 12; at + 8 <= file.length; ) {
    const [name, length] = [latin(file, at, at + 4), view.getUint32(at + 4, true)];
    const begin = at + 8;
    if (name === "EXIF") said.push(exif(view, latin(file, begin, begin + 6) === "Exif\0\0" ? begin + 6 : begin, begin + length));
    if (name === "XMP ") said.push(xmp(file, begin, begin + length));
    at = begin + length + (length & 1);
  }
  return turned((view.getUint32(24, true) & 0xffffff) + 1, (view.getUint32(26, true) >>> 8) + 1, said);
}

function bmp(view: DataView): Header {
  const old = view.getUint32(14, true) === 12;
  const [width, height] = old
    ? [view.getUint16(18, true), view.getUint16(20, true)]
    : [view.getInt32(18, true), Math.abs(view.getInt32(22, true))]; // a negative height: top row first
  return upright(width, height);
}

// --- orientation

type Said = Pick<Header, "orientation" | "orientationAt"> & { from: "exif" | "xmp" };

/** XMP is asked where EXIF has no such tag, as Pillow does; what is not 1 to 8 says nothing. */
function turned(width: number, height: number, said: Said[]): Header {
  const heard = said.find(({ from, orientation }) => from === "exif" && orientation !== 0) ?? said.find(({ from }) => from === "xmp");
  if (!heard || heard.orientation < 1 || heard.orientation > 8) return upright(width, height);
  return { width, height, orientation: heard.orientation, orientationAt: heard.orientationAt };
}

/** Tag 0x0112 of the first directory of the TIFF structure in [from, to). */
function exif(view: DataView, from: number, to: number): Said {
  const nothing: Said = { orientation: 0, orientationAt: null, from: "exif" };
  try {
    const order = view.getUint16(from);
    if (order !== 0x4949 && order !== 0x4d4d) return nothing;
    const little = order === 0x4949;
    const directory = from + view.getUint32(from + 4, little);
    const entries = view.getUint16(directory, little);
    for (let at = directory + 2; at < directory + 2 + 12 * entries && at + 12 <= to; at += 12) {
      if (view.getUint16(at, little) !== 0x0112) continue;
      const bytes = { 1: 1, 3: 2, 4: 4 }[view.getUint16(at + 2, little)];
      if (!bytes || view.getUint32(at + 4, little) !== 1) return nothing;
      const offset = at + 8;
      const value =
        bytes === 1 ? view.getUint8(offset) : bytes === 2 ? view.getUint16(offset, little) : view.getUint32(offset, little);
      return { orientation: value, orientationAt: { offset, bytes, little }, from: "exif" };
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // broken metadata; the pixels are still good
  }
  return nothing;
}

function xmp(file: Uint8Array, from: number, to: number): Said {
  const found = /tiff:Orientation(?:="|>)([0-9])/.exec(latin(file, from, Math.min(to, from + 65536)));
  return { orientation: found ? Number(found[1]) : 0, orientationAt: null, from: "xmp" };
}
