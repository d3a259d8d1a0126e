// A browser on a leash: each line on stdin is one thing to do in Chromium, each line on stdout what came of it.
// Arguments: the folder of edge/web (whose playwright-core is used), Chromium, a new folder for its profile.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [web, executablePath, profile, ...more] = process.argv.slice(2);
const { chromium } = createRequire(`${web}/package.json`)("playwright-core");

const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: [...QUIET, ...more] });
const page = context.pages()[0] ?? (await context.newPage());
const seen = { errors: [], requests: [] };
page.on("pageerror", (error) => seen.errors.push(String(error)));
page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.errors.push(message.text()));
context.on("request", (request) => seen.requests.push(request.url()));

const DO = {
  goto: ([url]) => page.goto(url).then(() => null),
  evaluate: ([code, given]) => page.evaluate(`(async (given) => {${code}})(${JSON.stringify(given ?? null)})`),
  click: ([where]) => page.click(where),
  fill: ([where, text]) => page.fill(where, text),
  press: ([where, key]) => page.press(where, key),
  select: ([where, value]) => page.selectOption(where, value),
  files: ([where, paths]) => page.setInputFiles(where, paths),
  text: ([where]) => page.innerText(where),
  count: ([where]) => page.locator(where).count(),
  wait: ([where]) => page.waitForSelector(where, { timeout: 20000 }).then(() => null),
  hidden: ([where]) => page.waitForSelector(where, { state: "hidden", timeout: 20000 }).then(() => null),
  draw: async ([where, points]) => {
    const box = await page.locator(where).boundingBox();
    const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
    await page.mouse.move(...at(points[0]));
    await page.mouse.down();
    for (const point of points.slice(1)) await page.mouse.move(...at(point), { steps: 4 });
    await page.mouse.up();
  },
  size: ([width, height]) => page.setViewportSize({ width, height }),
  scheme: ([colorScheme]) => page.emulateMedia({ colorScheme }),
  offline: ([offline]) => context.setOffline(offline),
  screenshot: ([path, fullPage]) => page.screenshot({ path, fullPage }).then(() => null),
  seen: () => seen,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { what, given } = JSON.parse(line);
  let answer;
  try {
    answer = { done: (await DO[what](given)) ?? null };
  } catch (error) {
    answer = { failed: String(error.message ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context.close();
