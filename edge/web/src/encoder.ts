/**
 * One form of the encoder on one backend of ONNX Runtime Web, proved on this machine before it is used.
 *
 * Owns the session and the golden check. Runs in worker.ts; the only file that loads ONNX Runtime.
 */

import type * as Ort from "onnxruntime-web";

import { Bundle, type Golden } from "./bundle";
import { badBundle, plain } from "./errors";

export type Backend = "wasm" | "webgpu";

/** Golden pictures run again here. difference, tolerance: largest of a number, found and allowed. */
export interface Proof {
  pictures: number;
  difference: number;
  tolerance: number;
  ok: boolean;
}

/** How an encoder runs. notes: what was tried before and why it was not taken, sentences. */
export interface Running {
  form: string;
  encoder: string;
  backend: Backend;
  threads: number;
  proof: Proof;
  notes: string[];
}

const MAX_THREADS = 4;
const MODULE: Record<Backend, string> = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };

export class Encoder {
  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly bundle: Bundle,
    readonly running: Running,
  ) {}

  /**
   * The first of `tries` whose golden check passes; the others are told of in its notes.
   * Throws BadBundle if none does: such tokens must never leave the browser.
   */
  static async prove(bundle: Bundle, tries: { form: string; backend: Backend }[]): Promise<Encoder> {
    const golden = await bundle.golden();
    const notes: string[] = [];
    for (const { form, backend } of tries) {
      try {
        const encoder = await Encoder.load(bundle, form, backend, notes);
        const { proof } = encoder.running;
        proof.difference = await encoder.replay(golden);
        proof.ok = proof.difference <= proof.tolerance; // false for NaN
        proof.pictures = golden.pictures;
        if (proof.ok) return encoder;
        const [found, allowed] = [proof.difference, proof.tolerance].map((value) => value.toPrecision(2));
        notes.push(`${form} on ${backend} fails its golden check here: differs by ${found}, ${allowed} is allowed.`);
        await encoder.session.release();
      } catch (error) {
        notes.push(`${form} on ${backend} does not run here: ${plain(error).message}`);
      }
    }
    throw badBundle(notes.join(" "));
  }

  private static async load(bundle: Bundle, form: string, backend: Backend, notes: string[]): Promise<Encoder> {
    const graph = await bundle.graph(form);
    const home = new URL("./ort/", import.meta.url);
    const ort: typeof Ort = await import(new URL(MODULE[backend], home).href);
    const threads = self.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency) : 1;
    ort.env.wasm.wasmPaths = home.href;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const session = await ort.InferenceSession.create(graph, { executionProviders: [backend] });
    const { encoder, tolerance } = bundle.manifest.graphs[form];
    const proof = { pictures: 0, difference: NaN, tolerance, ok: false };
    return new Encoder(ort, session, bundle, { form, encoder, backend, threads, proof, notes });
  }

  /** Tokens (pictures, token_count, token_width) of pixels (pictures, side, side, 3). Throws BadBundle. */
  async encode(pixels: Uint8Array, pictures = 1): Promise<Float32Array> {
    const { picture, token_count: count, token_width: width } = this.bundle.manifest;
    const given = new this.ort.Tensor("uint8", pixels, [pictures, picture.side, picture.side, 3]);
    const { sentence } = await this.session.run({ pixels: given }, ["sentence"]);
    const tokens = sentence.data;
    if (!(tokens instanceof Float32Array) || String(sentence.dims) !== String([pictures, count, width])) {
      throw badBundle("The encoder gives tokens of another shape than its manifest says. Get the bundle again.");
    }
    if (!tokens.every(Number.isFinite)) throw badBundle("The encoder gives tokens that are not finite numbers here.");
    return tokens.slice();
  }

  private async replay(golden: Golden): Promise<number> {
    const tokens = await this.encode(golden.pixels, golden.pictures);
    return tokens.reduce((worst, value, at) => Math.max(worst, Math.abs(value - golden.sentence[at])), 0);
  }
}
