// Build the page into the service's package, from where `pocketlens-cloud serve --web` serves it.

import { build } from "esbuild";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../../cloud/pocketlens_cloud/serving/page");
const ort = join(here, "node_modules/onnxruntime-web/dist");

// ONNX Runtime stays in files of its own: it finds its wasm beside itself and starts its threads from itself.
const RUNTIME = [
  "ort.wasm.min.mjs",
  "ort-wasm-simd-threaded.mjs",
  "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.min.mjs",
  "ort-wasm-simd-threaded.asyncify.mjs",
  "ort-wasm-simd-threaded.asyncify.wasm",
];

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "ort"), { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.ts", "src/edge.ts", "src/worker.ts"],
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  outdir: out,
  chunkNames: "part-[hash]",
  metafile: true,
  logLevel: "warning",
});
for (const name of readdirSync(join(here, "static"))) cpSync(join(here, "static", name), join(out, name));
for (const name of RUNTIME) {
  const text = name.endsWith(".mjs") && readFileSync(join(ort, name), "utf8");
  if (text) writeFileSync(join(out, "ort", name), text.replace(/\n?\/\/# sourceMappingURL=.*\s*$/, "\n"));
  else cpSync(join(ort, name), join(out, "ort", name));
}
writeFileSync(join(out, "LICENSES.txt"), licences([...Object.keys(metafile.inputs), "node_modules/onnxruntime-web/"]));

/** Licence texts of every package that went into the page; two packages carry none, theirs lie in licences/. */
function licences(inputs) {
  const names = inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean);
  const texts = [...new Set(names)].sort().map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
    const text = readFileSync(file ? join(folder, file) : join(here, "licences", `${name.replace("/", "+")}.txt`), "utf8");
    return `${name} ${version}, ${license}\n\n${text.trim()}\n`;
  });
  const apache = `Pocketlens, Apache-2.0\n\n${readFileSync(join(here, "../../LICENSE"), "utf8").trim()}\n`;
  return [...texts, apache].join(`\n${"-".repeat(78)}\n\n`);
}
