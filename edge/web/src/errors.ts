/** What goes wrong and how it is told: a sentence for the user, and the kind that pocketlens_wire/errors.py names. */

export class PocketlensError extends Error {
  constructor(
    readonly kind: string,
    message: string,
  ) {
    super(message);
    this.name = "PocketlensError";
  }
}

export const badPicture = (message: string) => new PocketlensError("BadPicture", message);
export const badBundle = (message: string) => new PocketlensError("BadBundle", message);
export const badQuery = (message: string) => new PocketlensError("BadQuery", message);

/** Any thrown thing as one of ours; what nobody foresaw is named as such, without its stack. */
export function plain(thrown: unknown): PocketlensError {
  if (thrown instanceof PocketlensError) return thrown;
  const said = thrown instanceof Error ? thrown.message : String(thrown);
  return new PocketlensError("Unforeseen", `Something failed in this browser: ${said.split("\n")[0].slice(0, 300)}`);
}
