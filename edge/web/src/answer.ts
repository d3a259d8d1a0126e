/** How an answer looks: hits with their pictures, and the receipt of bytes and times. Text only ever as text. */

import type { Answer, Encoded } from "./edge";
import { Mode } from "./edge";
import type { Hit, Value } from "./gen/pocketlens_wire/v1/retrieval_pb";

export const MODES: Partial<Record<Mode, string>> = { [Mode.ZERO_SHOT]: "zero-shot", [Mode.TUNED]: "tuned" };

export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Record<string, string> = {},
  ...inside: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

/** [key, value] of a hit's payload, by key: a map on the wire has no order. */
function payloadOf(hit: Hit): [key: string, value: Plain][] {
  const keys = Object.keys(hit.payload).sort();
  return keys.map((key) => [key, plain(hit.payload[key])]);
}

type Plain = string | bigint | number | boolean | undefined;

/** A value in one word: several are listed, a place is its degrees. */
function plain({ kind }: Value): Plain {
  switch (kind.case) {
    case "several":
      return kind.value.values.map(plain).join(", ");
    case "place":
      return `${kind.value.latitude}, ${kind.value.longitude}`;
    default:
      return kind.value;
  }
}

/** A payload in few words: a flag is its name if it holds and nothing if not. */
const inShort = ([key, value]: ReturnType<typeof payloadOf>[number]): string =>
  value === true ? key : value === false || value === undefined ? "" : String(value);

/** One hit. `show` gives the image its source; `again` asks with its picture. */
export function hitItem(hit: Hit, rank: number, show: (image: HTMLImageElement) => void, again: () => void): HTMLLIElement {
  const payload = payloadOf(hit);
  const file = String(payload.find(([key]) => key === "file")?.[1] ?? hit.id);
  const holds = payload.filter(([key]) => key !== "file");
  const image = element("img", { alt: `Hit ${rank}: ${file}`, loading: "lazy", decoding: "async" });
  const card = element("div", { class: "card" }, image);
  const button = element("button", { type: "button", class: "again", "aria-label": `Ask with hit ${rank}` }, "Ask with this");
  button.addEventListener("click", again);
  image.addEventListener("error", () => {
    card.replaceChildren("no picture here");
    button.remove();
  });
  show(image);
  const said = element("p", { class: "said" }, element("b", {}, String(rank)), hit.score.toFixed(3));
  const all = [`file: ${file}`, ...holds.map(([key, value]) => `${key}: ${value}`)].join("\n");
  const about = element("p", { class: "said holds", title: all }, holds.map(inShort).filter(Boolean).join(" · ") || file);
  const item = element("li", { "data-id": hit.id, "data-file": file }, card, said, about);
  item.append(button);
  return item;
}

/** Stages of one question with their milliseconds, in the order they happen. */
export function stagesOf(encoded: Encoded | null, { reply, roundTrip }: Answer): [name: string, ms: number][] {
  const { decode, fit, encode } = encoded?.times ?? { decode: 0, fit: 0, encode: 0 };
  const times = reply.times!;
  const own: [string, number][] = encoded ? [["decode", decode], ["fit", fit], ["encode", encode]] : [];
  return [
    ...own,
    ["network", Math.max(0, roundTrip - times.totalMs)],
    ["text tower", times.textTowerMs],
    ["search", times.searchMs],
    ["server, rest", Math.max(0, times.totalMs - times.textTowerMs - times.searchMs)],
  ];
}

/** Fill the receipt: bytes sent, and the stages as a bar and in numbers. */
export function showReceipt(bar: HTMLElement, list: HTMLElement, encoded: Encoded | null, answer: Answer): void {
  const stages = stagesOf(encoded, answer);
  const total = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const colour = (index: number) => `s${index + 7 - stages.length}`;
  bar.replaceChildren(
    ...stages.map(([, ms], index) => {
      const part = element("i", { class: colour(index) });
      part.style.flexGrow = String(ms);
      return part;
    }),
  );
  const row = (name: string, value: string, mark?: string) =>
    element("div", {}, element("dt", {}, ...(mark ? [element("i", { class: mark })] : []), name), element("dd", {}, value));
  list.replaceChildren(
    row("sent", `${answer.bytes.toLocaleString("en")} bytes`),
    row("took", milliseconds(total)),
    ...stages.map(([name, ms], index) => row(name, milliseconds(ms), colour(index))),
  );
}

const milliseconds = (ms: number) => `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
