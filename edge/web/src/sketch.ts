/** A pad to draw on, and what was drawn as a PNG: dark lines on white, as sketches are. */

import { badPicture } from "./errors";

const INK = "#1d1d1f";
const THICK = 7; // pixels of the 512 wide pad: about the lines of the sketches that students learn on

type Stroke = [x: number, y: number][];

export class Sketch {
  private readonly pen: CanvasRenderingContext2D;
  private strokes: Stroke[] = [];

  constructor(
    private readonly pad: HTMLCanvasElement,
    private readonly changed: (isEmpty: boolean) => void,
  ) {
    this.pen = pad.getContext("2d")!;
    pad.addEventListener("pointerdown", (event) => this.begin(event));
    pad.addEventListener("pointermove", (event) => this.go(event));
    this.paint();
  }

  undo(): void {
    this.strokes.pop();
    this.paint();
  }

  wipe(): void {
    this.strokes = [];
    this.paint();
  }

  async png(): Promise<Uint8Array> {
    const blob = await new Promise<Blob | null>((done) => this.pad.toBlob(done, "image/png"));
    if (!blob) throw badPicture("This browser cannot make a picture of the sketch.");
    return new Uint8Array(await blob.arrayBuffer());
  }

  private begin(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.pad.setPointerCapture(event.pointerId);
    this.strokes.push([this.at(event)]);
    this.paint();
  }

  private go(event: PointerEvent): void {
    if (!this.pad.hasPointerCapture(event.pointerId)) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    this.strokes.at(-1)?.push(...(passed.length ? passed : [event]).map((each) => this.at(each)));
    this.paint();
  }

  private at(event: PointerEvent): [number, number] {
    const box = this.pad.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.pad.width, ((event.clientY - box.top) / box.height) * this.pad.height];
  }

  private paint(): void {
    const { pen, pad } = this;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, pad.width, pad.height);
    Object.assign(pen, { lineWidth: THICK, lineCap: "round", lineJoin: "round", strokeStyle: INK });
    for (const stroke of this.strokes) {
      pen.beginPath();
      pen.moveTo(...stroke[0]);
      for (const point of stroke) pen.lineTo(...point); // the first too: a dot is a stroke
      pen.stroke();
    }
    this.changed(this.strokes.length === 0);
  }
}
