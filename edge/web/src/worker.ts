/**
 * The device's part, off the page's own thread: decode, fit, encode. A large picture takes its time; the page stays awake.
 *
 * Owns the order of steps. Answers one message for each that comes; edge.ts is the other end.
 */

import { Bundle, type Manifest } from "./bundle";
import { Encoder, type Backend, type Running } from "./encoder";
import { badBundle, plain } from "./errors";
import { fit } from "./fit";
import { openPicture } from "./pictures";

export interface Encoded {
  /** float32 (token_count, token_width), row by row. */
  tokens: Float32Array;
  /** What the encoder saw: RGB (side, side, 3). */
  pixels: Uint8Array;
  /** Milliseconds: decode, fit, encode. */
  times: Record<"decode" | "fit" | "encode", number>;
}

export type Call =
  | { open: string; accepted: string[] }
  | { use: { form: string; backend: Backend } | null }
  | { encode: Uint8Array; name: string };

let bundle: Bundle | null = null;
let usual: string[] = [];
let encoder: Encoder | null = null;

/** `accepted`: the encoder ids that the server takes tokens of. */
async function open(home: string, accepted: string[]): Promise<Manifest> {
  bundle = await Bundle.open(new URL(home));
  const { graphs } = bundle.manifest;
  usual = ["int8", "fp32"].filter((form) => form in graphs && accepted.includes(graphs[form].encoder));
  return bundle.manifest;
}

/** Null: int8 if there is one and it proves itself here, else fp32. What is asked for and fails falls back to that. */
async function use(asked: { form: string; backend: Backend } | null): Promise<Running> {
  if (!bundle) throw badBundle("No bundle is open.");
  const tries = usual.map((form) => ({ form, backend: "wasm" as Backend }));
  encoder = await Encoder.prove(bundle, asked ? [asked, ...tries] : tries);
  return encoder.running;
}

async function encode(file: Uint8Array, name: string): Promise<Encoded> {
  if (!bundle || !encoder) throw badBundle("No encoder has passed its golden check here.");
  const begun = performance.now();
  const picture = await openPicture(file, name);
  const opened = performance.now();
  const pixels = fit(picture, bundle.manifest.picture);
  const fitted = performance.now();
  const tokens = await encoder.encode(pixels);
  const encoded = performance.now();
  return { tokens, pixels, times: { decode: opened - begun, fit: fitted - opened, encode: encoded - fitted } };
}

function answer(call: Call): Promise<Manifest | Running | Encoded> {
  if ("open" in call) return open(call.open, call.accepted);
  if ("use" in call) return use(call.use);
  return encode(call.encode, call.name);
}

let last: Promise<unknown> = Promise.resolve();
self.addEventListener("message", ({ data: { id, call } }: MessageEvent<{ id: number; call: Call }>) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id, done: await answer(call) });
    } catch (error) {
      const { kind, message } = plain(error);
      self.postMessage({ id, failed: { kind, message } });
    }
  });
});
