/**
 * The browser edge as a program uses it: open, encode, search.
 *
 * Owns the worker's other end, the search request, and the way from a reply or a refusal to plain values. The page is
 * one user of it, a test another: `import { Edge } from "/edge.js"`.
 */

import { create, fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";

import type { Manifest } from "./bundle";
import type { Backend, Running } from "./encoder";
import { badQuery, PocketlensError } from "./errors";
import {
  ConditionSchema,
  DescribeReplySchema,
  DescribeRequestSchema,
  Mode,
  SearchReplySchema,
  SearchRequestSchema,
  ValueSchema,
  type Condition,
  type DescribeReply,
  type SearchReply,
  type SearchRequest,
  type Value,
} from "./gen/pocketlens_wire/v1/retrieval_pb";
import { pack } from "./tokens";
import type { Call, Encoded } from "./worker";

export { Mode, PocketlensError };
export type { Backend, DescribeReply, Encoded, Manifest, Running, SearchReply };

const PROTOBUF = "application/x-protobuf";
const TIMEOUT_MS = 8000; // the server gives up after 5 s and says so; this is for a server that says nothing

export type Scalar = string | number | bigint | boolean;

export interface Question {
  encoded: Encoded | null;
  words: string;
  mode?: Mode;
  top?: number;
  where?: Record<string, Scalar>;
}

export interface Answer {
  reply: SearchReply;
  /** Bytes of the message that was sent; HTTP's own headers are not in it. */
  bytes: number;
  /** From the call to its reply, milliseconds. */
  roundTrip: number;
}

export class Edge {
  private readonly worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  private readonly waiting = new Map<number, { done(value: unknown): void; failed(error: PocketlensError): void }>();
  private calls = 0;
  manifest!: Manifest;
  running!: Running;
  /** What the server said of itself when this was opened. */
  server!: DescribeReply;

  private constructor(
    private readonly home: URL,
    /** Sent with every question and for every hit's picture; empty where the server asks for none. */
    public key: string,
  ) {
    this.worker.addEventListener("message", ({ data: { id, done, failed } }) => {
      const waiting = this.waiting.get(id);
      this.waiting.delete(id);
      if (failed) waiting?.failed(new PocketlensError(failed.kind, failed.message));
      else waiting?.done(done);
    });
    this.worker.addEventListener("error", () => this.lost());
  }

  /**
   * Load the encoder of the server at `home` (default: where this file came from) and prove it on this machine.
   * Throws Unauthenticated where the server wants a `key` and this one is not good.
   */
  static async open(home: URL = new URL("/", import.meta.url), key = ""): Promise<Edge> {
    const edge = new Edge(home, key);
    try {
      await edge.begin();
    } catch (error) {
      edge.worker.terminate();
      throw error;
    }
    return edge;
  }

  private async begin(): Promise<void> {
    this.server = await this.describe();
    this.manifest = await this.call<Manifest>({ open: new URL("v1/bundle/", this.home).href, accepted: this.server.encoders });
    const [ours, its] = [this.manifest.token_space, this.server.tokenSpace];
    if (ours !== its) {
      throw new PocketlensError("SpaceMismatch", `The page's bundle speaks token space ${ours}, the server ${its}. Reload the page.`);
    }
    await this.use(null);
  }

  /** Take a form and backend, proved first; what fails its golden check is not taken, and `running.notes` says so. */
  async use(asked: { form: string; backend: Backend } | null): Promise<Running> {
    this.running = await this.call<Running>({ use: asked });
    return this.running;
  }

  /** Tokens of a picture file. Throws BadPicture, calling it `name`. */
  encode(file: Uint8Array, name = "picture"): Promise<Encoded> {
    return this.call<Encoded>({ encode: file, name });
  }

  /** What the server speaks and allows. */
  async describe(): Promise<DescribeReply> {
    return (await this.post("v1/describe", DescribeRequestSchema, create(DescribeRequestSchema), DescribeReplySchema)).reply;
  }

  /** The request that `search` sends. Throws BadQuery for what is not worth sending. */
  question({ encoded, words, mode = Mode.UNSPECIFIED, top = 12, where = {} }: Question): SearchRequest {
    if (!encoded && !words.trim()) throw badQuery("Nothing to search for. Give a picture, words, or both.");
    const { token_count: count, token_width: width, token_space: tokenSpace } = this.manifest;
    const filter = Object.entries(where).map(([key, value]) => condition(key, value));
    const request = create(SearchRequestSchema, { tokenSpace, words, mode, top, filter });
    if (encoded) {
      request.encoder = this.running.encoder;
      request.sentence = pack(encoded.tokens, count, width);
    }
    return request;
  }

  /** Ask. Throws a PocketlensError in plain words. */
  search(question: Question): Promise<Answer> {
    return this.post("v1/search", SearchRequestSchema, this.question(question), SearchReplySchema);
  }

  /** Where a hit's picture is; behind a key only `picture` can fetch it. */
  pictureOf(id: string): string {
    return new URL(`v1/pictures/${id}`, this.home).href;
  }

  /** A hit's picture. Throws Unavailable where there is none. */
  async picture(id: string): Promise<Blob> {
    const response = await fetch(this.pictureOf(id), { headers: this.headers() }).catch(() => null);
    if (!response?.ok) throw new PocketlensError("Unavailable", "The hit's picture cannot be fetched. Is the server still running?");
    return response.blob();
  }

  /** Throws Unauthenticated for a key that cannot be sent, or that others could read on its way. */
  private headers(): Record<string, string> {
    if (!this.key) return {};
    const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(this.home.hostname);
    if (this.home.protocol !== "https:" && !isLocal) {
      throw new PocketlensError("Unauthenticated", "A key is not sent over a connection that others can read. Open the page over https.");
    }
    if (!/^[!-~]+$/.test(this.key)) throw new PocketlensError("Unauthenticated", "This is no key: one begins with plk_ and has no spaces.");
    return { Authorization: `Bearer ${this.key}` };
  }

  private call<Result>(call: Call): Promise<Result> {
    const id = this.calls++;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done: done as (value: unknown) => void, failed });
      this.worker.postMessage({ id, call });
    });
  }

  private lost(): void {
    const error = new PocketlensError("Unforeseen", "The encoder's worker stopped, perhaps for lack of memory. Reload the page.");
    for (const { failed } of this.waiting.values()) failed(error);
    this.waiting.clear();
  }

  private async post<Asked extends DescMessage, Given extends DescMessage>(
    path: string,
    asked: Asked,
    message: MessageShape<Asked>,
    given: Given,
  ): Promise<{ reply: MessageShape<Given>; bytes: number; roundTrip: number }> {
    const body = toBinary(asked, message);
    const headers = { "Content-Type": PROTOBUF, ...this.headers() };
    const begun = performance.now();
    let response: Response;
    let came: Uint8Array;
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      response = await fetch(new URL(path, this.home), { method: "POST", body: body as Uint8Array<ArrayBuffer>, headers, signal });
      came = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      if (error instanceof DOMException && error.name === "TimeoutError") {
        throw new PocketlensError("TooLate", "The server did not answer in time. Ask again.");
      }
      throw new PocketlensError("Unavailable", "The server does not answer. Is it still running?");
    }
    const roundTrip = performance.now() - begun;
    if (!response.ok) throw refusal(response.status, came);
    try {
      return { reply: fromBinary(given, came), bytes: body.length, roundTrip };
    } catch {
      throw new PocketlensError("ServerFault", "The server's answer cannot be read. Reload the page; it may be of another version.");
    }
  }
}

/** `colour=red, count=2` as a filter: typed by their looks, as on the command line; quotes make text. Throws BadQuery. */
export function parseFilter(text: string): Record<string, Scalar> {
  const where: Record<string, Scalar> = {};
  for (const part of text.split(",").map((each) => each.trim()).filter(Boolean)) {
    const [, key, value] = /^([^=]*[^=\s])\s*=\s*(.+)$/.exec(part) ?? [];
    if (!key) throw badQuery(`Filter “${part}” is not key=value, as in colour=red.`);
    if (Object.hasOwn(where, key)) throw badQuery(`Filter key “${key}” is given twice; a picture has one value of each.`);
    where[key] = typed(value);
  }
  return where;
}

function typed(value: string): Scalar {
  if (/^(".*"|'.*')$/.test(value)) return value.slice(1, -1);
  if (/^(true|false)$/i.test(value)) return value.toLowerCase() === "true";
  if (/^[+-]?\d+$/.test(value)) return BigInt(value.replace("+", ""));
  if (/^[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?$/.test(value)) return Number(value);
  return value;
}

function condition(key: string, value: Scalar): Condition {
  const kind = (): Value["kind"] => {
    switch (typeof value) {
      case "boolean":
        return { case: "flag", value };
      case "number":
        if (!Number.isFinite(value)) break;
        return { case: "number", value };
      case "bigint":
        if (BigInt.asIntN(64, value) !== value) break;
        return { case: "integer", value };
      default:
        return { case: "text", value };
    }
    throw badQuery(`Filter “${key}” is ${value}; a value is text, true/false or a finite number of 64 bits.`);
  };
  return create(ConditionSchema, { key, test: { case: "equals", value: create(ValueSchema, { kind: kind() }) } });
}

/** The gateway's refusal as an error; a body that is none of its own gives its status. */
function refusal(status: number, body: Uint8Array): PocketlensError {
  try {
    const { kind, message } = JSON.parse(new TextDecoder().decode(body));
    if (typeof kind === "string" && typeof message === "string") return new PocketlensError(kind, message);
  } catch {
    // not the gateway's: a proxy's page, perhaps
  }
  return new PocketlensError("ServerFault", `Something other than Pocketlens answers there (status ${status}).`);
}
