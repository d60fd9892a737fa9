// Builds src/ into dist/: one HTML page per screen, hashed assets below dist/static/.
// The box page is hand-written ES5 and is only joined and minified, never translated: what the parser test saw is what runs.
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build, transform } from "esbuild";

const root = path.dirname(fileURLToPath(import.meta.url));
const source = (...parts) => path.join(root, "src", ...parts);
const finished = path.join(root, "dist");
const dist = path.join(root, `dist.${process.pid}`); // takes the place of the finished one at the end: what is being served stays whole
const assets = path.join(dist, "static");

async function hashed(name, extension, text) {
  const digest = createHash("sha256").update(text).digest("hex").slice(0, 10).toUpperCase();
  const file = `${name}-${digest}.${extension}`;
  await writeFile(path.join(assets, file), text);
  return `/static/${file}`;
}

/** Fills {{name}} in a page; an unknown name is a mistake in the page, so it stops the build. */
async function page(name, values) {
  const html = await readFile(source("html", `${name}.html`), "utf8");
  const filled = html.replace(/\{\{(\w+)\}\}/g, (_, key) => {
    if (!(key in values)) throw new Error(`${name}.html: nothing known as {{${key}}}`);
    return values[key];
  });
  await writeFile(path.join(dist, `${name}.html`), filled);
}

await mkdir(assets, { recursive: true });

const shared = {
  bundle: true,
  minify: true,
  legalComments: "none",
  target: "es2020",
  logLevel: "warning",
  outdir: assets,
  entryNames: "[name]-[hash]",
  chunkNames: "chunk-[hash]",
  assetNames: "[name]-[hash]",
  metafile: true,
  write: true,
};

// MapLibre's worker is served from our own origin (no blob: worker, so the CSP can stay at 'self').
const worker = await build({
  ...shared,
  format: "iife",
  entryPoints: { "map-worker": path.join(root, "node_modules/maplibre-gl/dist/maplibre-gl-worker.mjs") },
});
const workerUrl = `/static/${path.basename(Object.keys(worker.metafile.outputs)[0])}`;

const app = await build({
  ...shared,
  format: "esm",
  splitting: true,
  jsx: "automatic",
  jsxImportSource: "preact",
  define: { MAP_WORKER_URL: JSON.stringify(workerUrl) },
  entryPoints: { wall: source("wall.tsx"), login: source("login.tsx"), worker: source("worker.tsx") },
});
const styles = await build({
  ...shared,
  entryPoints: {
    map: path.join(root, "node_modules/maplibre-gl/dist/maplibre-gl.css"),
    ...Object.fromEntries(["wall", "login", "worker", "stb"].map((name) => [`${name}-style`, source(`${name}.css`)])),
  },
});
const url = (result, name, extension) => {
  const file = Object.keys(result.metafile.outputs)
    .map((output) => path.basename(output))
    .find(
      (output) =>
        output.startsWith(`${name}-`) &&
        output.endsWith(extension) &&
        output.length === name.length + 9 + extension.length,
    );
  if (!file) throw new Error(`the build made no ${name}*${extension}`);
  return `/static/${file}`;
};

const parts = [path.join(root, "node_modules/paho-mqtt/paho-mqtt.js")];
for (const file of (await readdir(source("stb"))).sort()) parts.push(source("stb", file));
const joined = (await Promise.all(parts.map((file) => readFile(file, "utf8")))).join("\n;\n");
const box = await transform(joined, { minify: true, target: "es5", legalComments: "none", charset: "ascii" });
const boxScript = await hashed("stb", "js", box.code);

const icons = {};
for (const file of await readdir(source("icons"))) {
  const [name, extension] = file.split(".");
  icons[`icon_${name.replace(/\W/g, "_")}`] = await hashed(
    `icon-${name}`,
    extension,
    await readFile(source("icons", file)),
  );
}
await writeFile(path.join(dist, "icon.svg"), await readFile(source("icons", "app.svg"))); // for /favicon.ico
const manifest = await hashed(
  "worker",
  "webmanifest",
  JSON.stringify({
    name: "网格员值守",
    short_name: "网格员",
    lang: "zh-CN",
    id: "/worker",
    start_url: "/worker",
    scope: "/worker",
    display: "standalone",
    orientation: "portrait",
    background_color: "#0a1019",
    theme_color: "#0a1019",
    icons: [
      { src: icons.icon_app192, sizes: "192x192", type: "image/png" },
      { src: icons.icon_app512, sizes: "512x512", type: "image/png" },
      { src: icons.icon_app, sizes: "any", type: "image/svg+xml", purpose: "any" },
    ],
  }),
);

const mapCss = url(styles, "map", ".css");
for (const name of ["wall", "desk"])
  await page(name, {
    script: url(app, "wall", ".js"),
    style: url(styles, "wall-style", ".css"),
    map_style: mapCss,
    ...icons,
  });
await page("login", { script: url(app, "login", ".js"), style: url(styles, "login-style", ".css"), ...icons });
await page("worker", {
  script: url(app, "worker", ".js"),
  style: url(styles, "worker-style", ".css"),
  manifest,
  ...icons,
});
await page("stb", { script: boxScript, style: url(styles, "stb-style", ".css"), ...icons });

// The service worker holds what the gridworker's page needs to open: its entry, every chunk that reaches, style and icons.
const entry = url(app, "worker", ".js");
const reached = new Set();
const reach = (output) => {
  if (reached.has(output)) return;
  reached.add(output);
  for (const one of app.metafile.outputs[output].imports) if (one.path in app.metafile.outputs) reach(one.path);
};
reach(Object.keys(app.metafile.outputs).find((output) => path.basename(output) === path.basename(entry)));
const shell = [
  ...[...reached].map((output) => `/static/${path.basename(output)}`),
  url(styles, "worker-style", ".css"),
  manifest,
  ...Object.values(icons),
].sort();
const template = await readFile(source("sw.js"), "utf8");
const version = createHash("sha256")
  .update(template + JSON.stringify(shell))
  .digest("hex")
  .slice(0, 12);
await writeFile(
  path.join(dist, "sw.js"),
  template.replace("{{version}}", version).replace('["{{shell}}"]', JSON.stringify(shell)),
);

await rm(finished, { recursive: true, force: true });
await rename(dist, finished);
