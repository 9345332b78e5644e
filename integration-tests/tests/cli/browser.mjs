// Drives pages in a real Chromium: node browser.mjs TOOLS CHROMIUM FOLDER < steps.json
//
// Steps, in this order: {"open": URL}, {"phase": NAME} and {"text": TEXT} wait for what the page shows without a reload,
// {"fill": [[FIELD, VALUE], …]} fills the form with the keyboard alone and sends it, {"audit": NAME} checks the page in two sizes
// and two colour schemes and writes a picture of each to FOLDER, and one of what a desk shows first. Prints {"problems": […], "figures": […]} as JSON.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [tools, chromium, folder] = process.argv.slice(2);
const require = createRequire(path.join(tools, "node_modules", "x.js"));
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

// A move of a migration on a busy machine.
const LIMIT = 120_000;
const SIZES = { desk: { width: 1280, height: 900 }, phone: { width: 320, height: 740 } };
const problems = [];
const figures = [];

const browser = await puppeteer.launch({
  executablePath: chromium,
  headless: true,
  timeout: LIMIT,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"],
});
const page = await browser.newPage();
// The policy of the pages forbids scripts from elsewhere, and the checker is one.
await page.setBypassCSP(true);
page.setDefaultTimeout(LIMIT);
page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
page.on("requestfailed", (request) => {
  // A page that is left ends its event stream.
  if (!request.url().endsWith("/events")) problems.push(`not loaded: ${request.url()}`);
});
page.on("request", (request) => {
  if (new URL(request.url()).host !== new URL(page.url()).host && page.url() !== "about:blank" && !request.isNavigationRequest())
    problems.push(`loaded from elsewhere: ${request.url()}`);
});

const focused = () =>
  page.evaluate(() => {
    const one = document.activeElement;
    if (!one || one === document.body) return null;
    const style = getComputedStyle(one);
    return { tag: one.tagName.toLowerCase(), name: one.getAttribute("name"), text: (one.textContent || "").trim().slice(0, 60),
      id: one.id, visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 };
  });

/** Presses Tab until the field of this name has the focus. */
async function focusField(name) {
  for (let presses = 0; presses < 200; presses += 1) {
    const one = await focused();
    if (one?.name === name) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`no field ${name} is reached with the Tab key on ${page.url()}`);
}

async function fill(fields) {
  await page.evaluate(() => { document.activeElement?.blur(); window.scrollTo(0, 0); });
  for (const [name, value] of fields) {
    await focusField(name);
    const kind = await page.evaluate(() => document.activeElement.tagName);
    if (kind === "SELECT") {
      await page.keyboard.press("Home");
      for (let presses = 0; (await page.evaluate(() => document.activeElement.value)) !== value; presses += 1) {
        if (presses > 30) throw new Error(`${name} has no choice ${value}`);
        await page.keyboard.press("ArrowDown");
      }
    } else if ((await page.evaluate(() => document.activeElement.type)) === "checkbox") {
      await page.keyboard.press("Space");
    } else {
      await page.keyboard.down("Control");
      await page.keyboard.press("a");
      await page.keyboard.up("Control");
      await page.keyboard.press("Delete");
      await page.keyboard.type(value);
    }
  }
  await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.keyboard.press("Enter")]);
}

/** Every element that can have the focus gets it from the Tab key, in the order of the page, and shows that it has it. */
async function keyboard(name) {
  await page.evaluate(() => { document.activeElement?.blur(); window.scrollTo(0, 0); });
  const expected = await page.evaluate(() =>
    [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
      .filter((one) => one.type !== "hidden" && one.checkVisibility()).length);
  const seen = [];
  for (let presses = 0; presses < expected; presses += 1) {
    await page.keyboard.press("Tab");
    const one = await focused();
    if (!one) break;
    seen.push(one);
    if (!one.visible) problems.push(`${name}: ${one.tag} "${one.text}" does not show that it has the focus`);
  }
  if (seen.length !== expected) problems.push(`${name}: the Tab key reaches ${seen.length} of ${expected} elements`);
  const kept = await page.evaluate(() => {
    const one = document.querySelector("#live summary, #live a");
    if (!one) return true;
    one.focus();
    replace(live.innerHTML);
    return document.activeElement !== one && document.activeElement.textContent === one.textContent;
  });
  if (!kept) problems.push(`${name}: a new state takes the focus away`);
  if (seen[0]?.text !== "Skip to the content") problems.push(`${name}: the first element is not the way past the header`);
}

async function audit(name) {
  const address = page.url();
  for (const [size, viewport] of Object.entries(SIZES)) {
    for (const scheme of ["light", "dark"]) {
      const variant = `${name}-${size}-${scheme}`;
      await page.setViewport(viewport);
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(address, { waitUntil: "load" });
      await page.waitForFunction(() =>
        !document.getElementById("live") || document.getElementById("connection").textContent === "live");
      await page.evaluate(() => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() =>
        window.axe.run(document, { resultTypes: ["violations"] }));
      for (const one of violations)
        for (const node of one.nodes) problems.push(`${variant}: ${one.id}: ${one.help}: ${node.html}`);
      const wide = await page.evaluate(() => {
        const root = document.scrollingElement;
        const widest = [...document.querySelectorAll("main *")].find((one) =>
          one.getBoundingClientRect().right > root.clientWidth && !one.closest(".scroll, pre"));
        return root.scrollWidth > root.clientWidth ? `${root.scrollWidth} of ${root.clientWidth} pixels, by ${widest?.outerHTML.slice(0, 120)}` : null;
      });
      if (wide) problems.push(`${variant}: scrolls sideways: ${wide}`);
      await page.screenshot({ path: path.join(folder, `${variant}.png`), fullPage: true });
    }
  }
  await keyboard(name);
  await page.setViewport(SIZES.desk);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  await page.goto(address, { waitUntil: "load" });
  await page.screenshot({ path: path.join(folder, `${name}.png`) });
  figures.push({ page: name, ...(await weight()) });
}

/** What the browser loaded for this page, and when it painted something. */
async function weight() {
  await page.waitForFunction(() => performance.getEntriesByName("first-contentful-paint").length > 0);
  return page.evaluate(() => {
    const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
      .filter((one) => !one.name.endsWith("/events"));
    return {
      requests: loaded.length,
      bytes: loaded.reduce((sum, one) => sum + one.transferSize, 0),
      first_paint_ms: Math.round(performance.getEntriesByName("first-contentful-paint")[0].startTime),
    };
  });
}

const actions = {
  open: (url) => page.goto(url, { waitUntil: "load" }),
  fill,
  audit,
  phase: (phase) =>
    page.waitForFunction((phase) => document.querySelector("[aria-current=step]")?.textContent === phase, {}, phase),
  text: (text) => page.waitForFunction((text) => document.body.innerText.includes(text), {}, text),
};

let step;
try {
  for (step of JSON.parse(fs.readFileSync(0, "utf8")))
    for (const [name, value] of Object.entries(step)) await actions[name](value);
} catch (error) {
  const shown = await page.evaluate(() => document.body.innerText).catch(() => "");
  problems.push(`${JSON.stringify(step)}: ${error.message}; the page ${page.url()} shows:\n${shown}`);
}
console.log(JSON.stringify({ problems, figures }));
await browser.close();
