/** The page: a picture comes in one of five ways, words beside it, an answer comes out. Owns what happens when. */

import { element, hitItem, MODES, showReceipt } from "./answer";
import { Camera } from "./camera";
import { Edge, Mode, parseFilter, PocketlensError, type Answer, type Backend, type Encoded } from "./edge";
import { badPicture, plain } from "./errors";
import { Sketch } from "./sketch";

const find = <Kind extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as Kind;
const state = find("state");
const problem = find("problem");
const answer = find("answer");
const words = find<HTMLTextAreaElement>("words");
const go = find<HTMLButtonElement>("go");
const shown = find<HTMLImageElement>("shown");
const file = find<HTMLInputElement>("file");
const remove = find<HTMLButtonElement>("remove");
const encoders = find<HTMLSelectElement>("encoder");
const unlock = find<HTMLFormElement>("unlock");
const key = find<HTMLInputElement>("key");

const KEPT = "pocketlens-key"; // in this tab's storage: gone when the tab is
const REFUSED = new Set(["Unauthenticated", "NotAllowed"]); // with another key it may go

let edge: Edge | null = null;
let picture: { bytes: Uint8Array; name: string } | null = null;
let encoded: Encoded | null = null;
let turn = 0; // a later picture makes an earlier one's tokens stale
let asked = 0; // a later question an earlier one's answer

// --- telling

function say(text: string, how: "busy" | "ready" | "failed"): void {
  state.textContent = text;
  state.dataset.state = how;
}

function complain(error: PocketlensError | null): void {
  problem.hidden = !error;
  problem.textContent = error?.message ?? "";
  answer.toggleAttribute("data-old", error !== null); // what is shown answers the question before
  if (!error) return;
  problem.dataset.kind = error.kind;
  if (REFUSED.has(error.kind)) unlock.hidden = false;
  bring(problem);
}

/** Where all stands in one column the answer begins below what can be seen. */
function bring(what: HTMLElement): void {
  if (matchMedia("(max-width: 52rem)").matches) what.scrollIntoView({ block: "start" });
}

function tellEncoder(): void {
  const { form, backend, threads, proof, notes } = edge!.running;
  const on = `${form} on ${backend}${backend === "wasm" && threads > 1 ? `, ${threads} threads` : ""}`;
  say(`Ready: encoder ${on}, golden check passed`, "ready");
  const [found, allowed] = [proof.difference, proof.tolerance].map((value) => value.toPrecision(2));
  find("proof").textContent =
    `Golden check: ${proof.pictures} pictures run here differ from the trained model by at most ${found} (${allowed} is allowed).`;
  find("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  find("notes").hidden = notes.length === 0;
}

function ready(): void {
  go.disabled = !edge || (picture !== null && !encoded);
}

// --- the picture

async function take(bytes: Uint8Array, name: string): Promise<void> {
  const mine = ++turn;
  complain(null);
  picture = { bytes, name };
  encoded = null;
  remove.disabled = false;
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>]));
  shown.hidden = false;
  find("invite").hidden = true;
  find("choose").classList.add("full");
  ready();
  if (edge) await encode(mine);
}

async function encode(mine: number): Promise<void> {
  if (!edge || !picture) return;
  const { bytes, name } = picture;
  try {
    const made = await edge.encode(bytes, name);
    if (mine !== turn) return;
    encoded = made;
    showSquare(made);
    const { token_count: count, token_width: width } = edge.manifest;
    find("about").textContent = `What the encoder sees of it. ${count} tokens of width ${width} are ready to be sent.`;
  } catch (error) {
    if (mine !== turn) return;
    drop();
    complain(plain(error));
  }
  ready();
}

function showSquare({ pixels }: Encoded): void {
  const side = edge!.manifest.picture.side;
  const square = find<HTMLCanvasElement>("square");
  square.width = square.height = side;
  const image = new ImageData(side, side);
  for (let at = 0; at < side * side; at++) {
    image.data.set(pixels.subarray(3 * at, 3 * at + 3), 4 * at);
    image.data[4 * at + 3] = 255;
  }
  square.getContext("2d")!.putImageData(image, 0, 0);
  find("seen").hidden = false;
}

function drop(): void {
  turn++;
  picture = encoded = null;
  file.value = "";
  remove.disabled = true;
  URL.revokeObjectURL(shown.src);
  shown.removeAttribute("src");
  shown.hidden = true;
  find("invite").hidden = false;
  find("choose").classList.remove("full");
  find("seen").hidden = true;
  ready();
}

async function takeFile(given: File | null | undefined): Promise<void> {
  if (!given) return;
  try {
    await take(new Uint8Array(await given.arrayBuffer()), given.name || "picture");
  } catch {
    complain(badPicture(`${given.name}: cannot be read. Is it still there?`));
  }
}

async function takeHit(id: string, name: string): Promise<void> {
  try {
    const fetched = await edge!.picture(id);
    await take(new Uint8Array(await fetched.arrayBuffer()), name);
    words.focus();
  } catch (error) {
    complain(plain(error));
  }
}

function showHit(image: HTMLImageElement, id: string): void {
  if (!edge!.key) {
    image.src = edge!.pictureOf(id);
    return;
  }
  const shown = (picture: Blob) => {
    image.src = URL.createObjectURL(picture);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  };
  edge!.picture(id).then(shown, () => image.dispatchEvent(new Event("error")));
}

find("choose").addEventListener("click", () => file.click());
file.addEventListener("change", () => void takeFile(file.files?.[0]));
remove.addEventListener("click", () => {
  drop();
  complain(null);
  find("choose").focus();
});
document.addEventListener("paste", (event) => void takeFile(event.clipboardData?.files[0]));
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  void takeFile(event.dataTransfer?.files[0]);
});

// --- sketch and camera

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".cancel")!.addEventListener("click", () => dialog.close());
}
const sketchDialog = find<HTMLDialogElement>("sketch");
const sketch = new Sketch(find<HTMLCanvasElement>("pad"), (isEmpty) => {
  for (const id of ["undo", "wipe", "use-sketch"]) find<HTMLButtonElement>(id).disabled = isEmpty;
});
find("open-sketch").addEventListener("click", () => sketchDialog.showModal());
find("undo").addEventListener("click", () => sketch.undo());
find("wipe").addEventListener("click", () => sketch.wipe());
find("use-sketch").addEventListener("click", async () => {
  sketchDialog.close();
  await take(await sketch.png(), "sketch");
});

const cameraDialog = find<HTMLDialogElement>("camera");
const cameraProblem = find("camera-problem");
const camera = new Camera(find<HTMLVideoElement>("view"));
const shutter = find<HTMLButtonElement>("take");
find("open-camera").addEventListener("click", async () => {
  cameraProblem.hidden = true;
  shutter.disabled = true;
  cameraDialog.showModal();
  try {
    await camera.start();
    shutter.disabled = false;
    if (!cameraDialog.open) camera.stop(); // closed before the camera was there
  } catch (error) {
    cameraProblem.textContent = plain(error).message;
    cameraProblem.hidden = false;
  }
});
cameraDialog.addEventListener("close", () => camera.stop());
shutter.addEventListener("click", async () => {
  const taken = await camera.take();
  cameraDialog.close();
  await take(taken, "camera");
});

// --- the question

find<HTMLFormElement>("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!go.disabled) void ask();
});

words.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find<HTMLFormElement>("ask").requestSubmit();
});

async function ask(): Promise<void> {
  const mine = ++asked;
  complain(null);
  answer.setAttribute("aria-busy", "true");
  try {
    const question = {
      encoded,
      words: words.value,
      mode: Number(find<HTMLSelectElement>("mode").value) as Mode,
      top: Math.max(1, find<HTMLInputElement>("top").valueAsNumber || 12),
      where: parseFilter(find<HTMLInputElement>("filter").value),
    };
    const came = await edge!.search(question);
    if (mine === asked) show(question.encoded, came);
  } catch (error) {
    if (mine === asked) complain(plain(error));
  } finally {
    if (mine === asked) answer.setAttribute("aria-busy", "false");
  }
}

function show(encoded: Encoded | null, came: Answer): void {
  const { reply } = came;
  answer.removeAttribute("data-old");
  find("nothing").hidden = true;
  const hits = reply.hits.map((hit, index) => {
    const again = () => void takeHit(hit.id, `hit ${index + 1}`);
    return hitItem(hit, index + 1, (image) => showHit(image, hit.id), again);
  });
  find("hits").replaceChildren(...hits);
  const found = hits.length === 0 ? "No picture matches" : hits.length === 1 ? "1 hit" : `${hits.length} hits`;
  find("asked").textContent = `${found}, ${MODES[reply.mode] ?? "unknown"} mode`;
  const notes = [...reply.notes, ...(reply.wordsUsed ? [`Words used: ${reply.wordsUsed}`] : [])];
  find("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  find("notes").hidden = notes.length === 0;
  showReceipt(find("bar"), find("stages"), encoded, came);
  find("receipt").hidden = false;
  bring(answer);
}

// --- the encoder

encoders.addEventListener("change", async () => {
  const [form, backend] = encoders.value.split("|") as [string, Backend];
  encoded = null;
  ready();
  say("Checking the encoder", "busy");
  complain(null);
  try {
    await edge!.use(form ? { form, backend } : null);
    tellEncoder();
    const { running } = edge!;
    if (form && (running.form !== form || running.backend !== backend)) encoders.value = "";
    await encode(++turn);
  } catch (error) {
    say("No encoder runs here", "failed");
    complain(plain(error));
  }
  ready();
});

async function offerEncoders(): Promise<void> {
  const forms = Object.keys(edge!.manifest.graphs).filter((form) => !form.endsWith(".ort"));
  const offer = (form: string, backend: Backend, said: string) =>
    encoders.append(element("option", { value: `${form}|${backend}` }, said));
  encoders.replaceChildren(element("option", { value: "" }, "automatic"));
  for (const form of forms) offer(form, "wasm", `${form} on wasm`);
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  if (await gpu?.requestAdapter().catch(() => null)) {
    for (const form of forms) offer(form, "webgpu", `${form} on WebGPU, if it passes its check`);
  }
}

// --- the key

/** What this tab keeps; nothing where the browser keeps nothing for pages. */
function keptKey(): string {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

function keep(given: string): void {
  try {
    sessionStorage.setItem(KEPT, given);
  } catch {
    // then until the page is left
  }
}

unlock.addEventListener("submit", (event) => {
  event.preventDefault();
  const given = key.value.trim();
  if (!given) return;
  keep(given);
  key.value = "";
  unlock.hidden = true;
  complain(null);
  if (!edge) return void begin(given);
  edge.key = given;
  void ask();
});

// --- beginning

async function begin(given: string): Promise<void> {
  say("Loading the encoder", "busy");
  try {
    edge = await Edge.open(undefined, given);
    const { server } = edge;
    tellEncoder();
    find("gallery").textContent = `Gallery: ${server.gallerySize.toLocaleString("en")} pictures. Bundle: ${server.bundle}.`;
    const modes = server.modes.map((mode) => element("option", { value: String(mode) }, MODES[mode] ?? `mode ${mode}`));
    const usual = MODES[server.defaultMode] ?? "its own";
    find("mode").replaceChildren(element("option", { value: String(Mode.UNSPECIFIED) }, `the server's choice (${usual})`), ...modes);
    find<HTMLInputElement>("top").max = String(server.maxTop);
    find("keys").textContent = server.payloadKeys.length ? `Keys: ${server.payloadKeys.join(", ")}` : "This gallery has no keys.";
    await offerEncoders();
    await encode(turn); // a picture may have come before the encoder was there
  } catch (error) {
    say("Not ready", "failed");
    complain(plain(error));
  }
  ready();
}

void begin(keptKey());
