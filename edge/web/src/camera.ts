/** The camera: one frame of it as a PNG, and the light off afterwards. */

import { badPicture } from "./errors";

export class Camera {
  private stream: MediaStream | null = null;

  constructor(private readonly view: HTMLVideoElement) {}

  /** Begin to show. Throws BadPicture in plain words where there is no camera or none is allowed. */
  async start(): Promise<void> {
    if (!navigator.mediaDevices) {
      throw badPicture("Browsers give pages a camera only over https or on this very machine. Choose a file instead.");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      const name = error instanceof DOMException ? error.name : "";
      if (name === "NotAllowedError") throw badPicture("The camera is not allowed for this page. Allow it in the browser, or choose a file.");
      if (name === "NotFoundError") throw badPicture("There is no camera here. Choose a file instead.");
      throw badPicture("The camera cannot be used; another program may hold it. Choose a file instead.");
    }
    this.view.srcObject = this.stream;
    await this.view.play();
  }

  async take(): Promise<Uint8Array> {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.view.videoWidth, this.view.videoHeight];
    canvas.getContext("2d")!.drawImage(this.view, 0, 0);
    const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
    if (!blob) throw badPicture("The camera gave no picture. Try again.");
    return new Uint8Array(await blob.arrayBuffer());
  }

  stop(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.view.srcObject = null;
  }
}
