/**
 * The edge half of the server's bundle: manifest, graphs, golden vectors, each checked by its hash.
 *
 * Owns how the half is fetched and read. What a valid manifest is belongs to pocketlens_wire/manifest.py, which has
 * read it on the server before it was served; here only what this code relies on is looked at again.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { unzipSync } from "fflate";

import { badBundle, PocketlensError } from "./errors";
import type { PictureSpec } from "./fit";

const FORMAT = 2;

interface NamedFile {
  file: string;
  sha256: string;
  bytes: number;
}

export interface Graph extends NamedFile {
  encoder: string;
  tolerance: number;
}

export interface Manifest {
  format: number;
  kind: string;
  name: string;
  token_space: string;
  token_count: number;
  token_width: number;
  picture: PictureSpec;
  graphs: Record<string, Graph>;
  golden: NamedFile;
}

/** Golden pictures: pixels (pictures, side, side, 3), sentence (pictures, token_count, token_width). */
export interface Golden {
  pictures: number;
  pixels: Uint8Array;
  sentence: Float32Array;
}

export class Bundle {
  private constructor(
    readonly home: URL,
    readonly manifest: Manifest,
  ) {}

  /** Fetch the manifest below `home`. Throws BadBundle. */
  static async open(home: URL): Promise<Bundle> {
    const bytes = await fetched(new URL("manifest.json", home));
    let manifest: Manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(bytes));
    } catch {
      throw badBundle("The server's manifest.json is not JSON. Restart the server with a sound bundle.");
    }
    const { format, kind, picture, token_count: count, token_width: width } = manifest;
    if (format !== FORMAT) throw badBundle(`The bundle is of format ${format}, this page reads ${FORMAT}. Build the page again.`);
    const sound =
      kind === "edge" &&
      [picture?.side, count, width].every((size) => Number.isInteger(size) && size > 0) &&
      ["crop", "squash"].includes(picture.fit) &&
      ["bicubic", "bilinear"].includes(picture.resample);
    if (!sound) throw badBundle("The server's manifest.json is not an edge half's. Restart the server with a sound bundle.");
    return new Bundle(home, manifest);
  }

  /** The bytes of one form of the encoder. Throws BadBundle. */
  graph(form: string): Promise<Uint8Array> {
    const graph = this.manifest.graphs[form];
    if (!graph) throw badBundle(`This bundle has no ${form} encoder; it has ${Object.keys(this.manifest.graphs).join(", ")}.`);
    return this.verified(graph);
  }

  /** The golden vectors. Throws BadBundle. */
  async golden(): Promise<Golden> {
    const { picture, token_count: count, token_width: width, golden } = this.manifest;
    const arrays = readNpz(await this.verified(golden), golden.file);
    const [pixels, sentence] = [arrays.get("pixels"), arrays.get("sentence")];
    const pictures = pixels?.shape[0] ?? 0;
    const fits =
      String(pixels?.shape) === String([pictures, picture.side, picture.side, 3]) &&
      String(sentence?.shape) === String([pictures, count, width]) &&
      pixels?.values instanceof Uint8Array &&
      sentence?.values instanceof Float32Array;
    if (!fits || pictures === 0) throw badBundle(`${golden.file} does not hold the golden vectors. Get the bundle again.`);
    return { pictures, pixels: pixels.values as Uint8Array, sentence: sentence!.values as Float32Array };
  }

  private async verified(named: NamedFile): Promise<Uint8Array> {
    const bytes = await fetched(new URL(named.file, this.home));
    const came = bytesToHex(sha256(bytes));
    if (came !== named.sha256) {
      throw badBundle(`${named.file} is not the file its manifest means (sha256 ${came}, not ${named.sha256}). Reload the page.`);
    }
    return bytes;
  }
}

async function fetched(url: URL): Promise<Uint8Array> {
  let response: Response;
  try {
    response = await fetch(url);
  } catch {
    throw new PocketlensError("Unavailable", "The server does not answer. Is it still running?");
  }
  if (!response.ok) throw badBundle(`The server does not give ${url.pathname} (${response.status}). Restart it, or reload the page.`);
  return new Uint8Array(await response.arrayBuffer());
}

// --- numpy's files

interface NumpyArray {
  shape: number[];
  values: Uint8Array | Float32Array;
}

/** Arrays of an npz by name; only what golden vectors are made of: uint8 and little-endian float32 in C order. */
function readNpz(file: Uint8Array, name: string): Map<string, NumpyArray> {
  try {
    const members = Object.entries(unzipSync(file));
    return new Map(members.map(([member, bytes]) => [member.replace(/\.npy$/, ""), readNpy(bytes)]));
  } catch (error) {
    throw badBundle(`${name} cannot be read as golden vectors (${(error as Error).message}). Get the bundle again.`);
  }
}

function readNpy(bytes: Uint8Array): NumpyArray {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] > 1; // version 1 has a short length
  const begin = wide ? 12 : 10;
  const end = begin + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const head = new TextDecoder("latin1").decode(bytes.subarray(begin, end));
  const kind = /'descr': '([^']+)'/.exec(head)?.[1];
  const shape = /'shape': \(([^)]*)\)/.exec(head)?.[1].split(",").filter((size) => size.trim()).map(Number);
  if (!shape || !/'fortran_order': False/.test(head)) throw new Error("an array is laid out in another way");
  const data = bytes.slice(end); // a copy, so that it is aligned
  if (kind === "|u1") return { shape, values: data };
  if (kind === "<f4") return { shape, values: new Float32Array(data.buffer) };
  throw new Error(`an array holds ${kind}`);
}
