// The parts of the page that need no browser, run in node: cases as JSON on stdin, answers as JSON on stdout.
// Argument: the folder of the bundled parts.

import { readFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const { fit, formatOf, pack, readHeader, SentenceSchema, toBinary } = await import(`${folder}/ports.js`);

const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const text = (array) => Buffer.from(array).toString("base64");

const DO = {
  fit({ pixels, width, height, spec }) {
    return text(fit({ width, height, data: bytes(pixels), origin: 0, stepX: 3, stepY: 3 * width }, spec));
  },
  pack({ tokens, count, width }) {
    return text(toBinary(SentenceSchema, pack(new Float32Array(bytes(tokens).buffer), count, width)));
  },
  header({ file }) {
    const data = bytes(file);
    const { width, height, orientation } = readHeader(data, formatOf(data));
    return [width, height, orientation];
  },
};

const cases = JSON.parse(readFileSync(0, "utf8"));
const answers = cases.map(({ what, given }) => {
  try {
    return { done: DO[what](given) };
  } catch (error) {
    return { failed: error.message };
  }
});
process.stdout.write(JSON.stringify(answers));
