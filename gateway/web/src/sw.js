// Service worker of the gridworker's page: it opens without a network, so that what is said there can be kept and sent later.
// Only the shell is held (page, scripts, styles, icons), never an answer of the API, never a picture of a camera.
const NAME = "shell-{{version}}";
const PAGE = "/worker";
const SHELL = ["{{shell}}"];
const PATIENCE_MS = 4000; // a network that is there, but so slow that the held page is better

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(NAME);
      await cache.addAll(SHELL);
      await keepPage(await fetch(PAGE, { credentials: "same-origin", cache: "no-store" }));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) if (name.startsWith("shell-") && name !== NAME) await caches.delete(name);
      await self.clients.claim();
    })(),
  );
});

/** The page itself says nothing of anybody. What leads to the log-in is not the page. */
async function keepPage(response) {
  if (response.ok && !response.redirected) await (await caches.open(NAME)).put(PAGE, response.clone());
  return response;
}

async function page(request) {
  const held = await caches.match(PAGE);
  const live = fetch(request).then(keepPage);
  if (!held) return live;
  live.catch(() => undefined); // its failure is answered below; it must not count as unhandled
  const late = new Promise((resolve) => setTimeout(() => resolve(held), PATIENCE_MS));
  return Promise.race([live, late]).catch(() => held);
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  if (request.mode === "navigate") {
    if (url.pathname === PAGE) event.respondWith(page(request));
  } else if (url.pathname.startsWith("/static/")) {
    event.respondWith(caches.match(request).then((held) => held ?? fetch(request)));
  }
});
