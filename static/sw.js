// The service worker: lets a page open while its program is away. The address of this file says which app it is
// for.
//
// It keeps the pages of stores, each with the files that it names, and asks the program first whenever a page is opened.
// A page is only shown from here while the program doesn't answer, with the fragments that an open page has heard last, and
// it says from when it is. What is posted, streamed or asked by scripts doesn't come by here.
//
// Another program may answer in this one's place one day. Then this removes itself, with all that it has kept.

const { app: APP, title: TITLE } = Object.fromEntries(new URL(self.location.href).searchParams);
const MARK = "Likewise-App"; // the header of every answer of ours
const HOME = new URL("./", self.location.href).pathname;
const CACHE = `likewise-page:${APP}:${HOME}`;
const KEPT_AT = "Likewise-Kept-At";
const PAGES = 30;            // an app's searches have addresses without end
const ANSWER_WITHIN = 5_000; // a program that doesn't answer a page for this long counts as away
const AWAY = [502, 503, 504]; // what a proxy answers while the program behind it is away

const FILE = /^static\/[0-9a-f]+\/[^/]+$/;
const inHome = ({ pathname }) => (pathname.startsWith(HOME) ? pathname.slice(HOME.length) : undefined);
const isPage = (url) => /^(s\/[a-z0-9][a-z0-9-]{0,62}\/)?$/.test(inHome(url) ?? "none");
const isFile = (url) => FILE.test(inHome(url) ?? "none");
const isOurs = (answer) => answer.headers.get(MARK) === APP;

self.addEventListener("install", () => self.skipWaiting());
// It takes over no page that is open already: a browser would drop such a page from those to go back to.

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== self.location.origin) return;
  if (request.mode === "navigate" && isPage(url)) event.respondWith(openPage(event, url));
  else if (isFile(url)) event.respondWith(openFile(event));
});

/**
 * A page that was loaded before this worker was there asks to be kept, with the files that it has loaded. An open page tells
 * what it has heard.
 */
self.addEventListener("message", (event) => {
  const { keep, files, heard, news } = event.data;
  const url = new URL(keep ?? heard);
  if (!isPage(url)) return;
  event.waitUntil(keep ? keepOpened(url, files) : (telling = telling.then(() => keepNews(url, news)).catch(() => {})));
});
let telling = Promise.resolve(); // what is told is kept in that order

async function openPage(event, url) {
  const asked = Date.now();
  const answering = fetch(event.request);
  const late = new Promise((resolve) => setTimeout(resolve, ANSWER_WITHIN));
  const answer = await Promise.race([answering.catch(() => undefined), late]);
  if (!answer || (AWAY.includes(answer.status) && !isOurs(answer))) {
    return (await kept(url)) ?? answer ?? answering.catch(() => nothing(url));
  }
  event.waitUntil(judge(url, asked, answer));
  return answer;
}

/** Keeps what the program has answered, or forgets what it no longer gives. */
async function judge(url, asked, answer, files = []) {
  // The address of a page without parameters isn't redirected by us, and the answer of such a redirect shows no header.
  const isElsewhere = answer.type === "opaqueredirect" ? url.search === "" : !isOurs(answer);
  if (isElsewhere) return leave();
  if (answer.status === 200) return keep(url, asked, answer.clone(), files).catch(() => {});
  // Whoever may not see the page any more shouldn't find it here.
  if ([401, 403, 404, 410].includes(answer.status)) await forget(await findCache(asked), url.href);
}

async function keepOpened(url, files) {
  const asked = Date.now();
  const answer = await fetch(url, { cache: "no-store" }).catch(() => undefined);
  if (answer && !(AWAY.includes(answer.status) && !isOurs(answer))) await judge(url, asked, answer, files);
}

async function leave() {
  leftAt = Date.now();
  await caches.delete(CACHE);
  await self.registration.unregister(); // the browser may end the worker with this
}
let leftAt = 0; // nothing that began before then makes the cache again

/** The cache, for what began at that time, if there is one. */
async function findCache(began) {
  return (await caches.has(CACHE)) && began > leftAt ? caches.open(CACHE) : undefined;
}

/** Keeps what an open page has heard, beside that page. */
async function keepNews(url, news) {
  const cache = await findCache(news.at);
  // No room, perhaps. The page is then older when it opens, and says so.
  if (cache) await replace(cache, newsOf(withoutHash(url)), JSON.stringify(news), { [KEPT_AT]: news.at });
}

// ---------------------------------------------------------------------------------------------------------------------
// What is kept

/**
 * Keeps a page, once all the files that it needs are here. So page and files are always of one version. The page is from
 * when it was asked for: what an open page hears after that is newer.
 */
async function keep(url, asked, answer, files) {
  const headers = { ...Object.fromEntries(answer.headers), [KEPT_AT]: asked };
  for (const name of ["content-encoding", "content-length"]) delete headers[name];
  const html = await answer.text();
  if (asked <= leftAt) return;
  const cache = await caches.open(CACHE);
  await Promise.all([...new Set([...filesIn(html), ...files])].map((file) => keepFile(cache, file)));
  await replace(cache, withoutHash(url), html, headers);
  await tidy(cache);
}

/**
 * Puts a text in the place of another. A browser that ends while it puts one loses the other, too, so that there are two
 * copies of each.
 */
async function replace(cache, href, text, headers) {
  for (const copy of copiesOf(href)) await cache.put(copy, new Response(text, { headers }));
}

/** The newest copy of a text, if there is one. */
async function newest(cache, href) {
  const copies = await Promise.all(copiesOf(href).map((copy) => find(cache, copy)));
  const time = (copy) => Number(copy.headers.get(KEPT_AT));
  return copies.filter(Boolean).reduce((one, other) => (one && time(one) >= time(other) ? one : other), undefined);
}

function copiesOf(href) {
  return [href, href.replace(/(?=\?|$)/, ".copy")];
}

function originalOf(href) {
  return href.replace(/\.copy(?=\?|$)/, "");
}

/** The paths of the files that a page names, and of the worker that its script starts. */
function filesIn(html) {
  const paths = [...html.matchAll(/"(\/[^"?#]+)"/g)].map(([, path]) => path);
  const files = paths.filter((pathname) => isFile({ pathname }));
  const scripts = files.filter((path) => path.endsWith("/likewise.js"));
  return [...files, ...scripts.map((path) => path.replace(/likewise\.js$/, "worker.js"))];
}

async function keepFile(cache, file) {
  if (await find(cache, file)) return;
  const answer = await fetch(file);
  if (!isWhole(answer)) throw new Error(`${file} isn't there any more`);
  await cache.put(file, answer);
}

/** Whether an answer is the file that was asked for: a file of another version redirects to the present one. */
function isWhole(answer) {
  return answer.status === 200 && !answer.redirected && isOurs(answer);
}

async function openFile(event) {
  const cache = await findCache(Date.now());
  const file = cache && (await find(cache, event.request));
  if (file) return file;
  const answer = await fetch(event.request);
  if (cache && isWhole(answer)) event.waitUntil(cache.put(event.request, answer.clone()).catch(() => {}));
  return answer;
}

/** What is kept has one content, however it came. */
function find(cache, request) {
  return cache.match(request, { ignoreVary: true });
}

/** Forgets the pages that were opened longest ago, and files of versions that no page has. */
async function tidy(cache) {
  const all = (await cache.keys()).map(({ url }) => new URL(url));
  const originals = [...new Set(all.map(({ href }) => originalOf(href)))];
  const pages = originals.filter((href) => isPage(new URL(href))); // in the order in which they were kept
  for (const href of pages.slice(0, -PAGES)) await forget(cache, href);
  const texts = await Promise.all(pages.slice(-PAGES).map(async (href) => (await newest(cache, href))?.text()));
  const version = ({ pathname }) => pathname.split("/").at(-2);
  const needed = new Set(texts.flatMap((html) => filesIn(html ?? "")).map((pathname) => version({ pathname })));
  for (const url of all) if (isFile(url) && !needed.has(version(url))) await cache.delete(url, { ignoreVary: true });
}

async function forget(cache, href) {
  for (const copy of [href, newsOf(href)].flatMap(copiesOf)) await cache?.delete(copy, { ignoreVary: true });
}

function withoutHash({ href }) {
  return href.replace(/#.*/, "");
}

/** Where an open page keeps the fragments that it has heard last. Nothing there is ever taken for the stream itself. */
function newsOf(href) {
  return new URL(`live${new URL(href).search}`, href).href;
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown

/** A kept page, with what is known since. Nothing if it isn't here. */
async function kept(url) {
  const cache = await findCache(Date.now());
  const href = withoutHash(url);
  const page = cache && (await newest(cache, href));
  if (!page) {
    const home = url.origin + url.pathname;
    return home !== href && cache && (await newest(cache, home)) ? Response.redirect(home) : undefined;
  }
  const news = await (await newest(cache, newsOf(href)))?.json().catch(() => undefined);
  const keptAt = Number(page.headers.get(KEPT_AT));
  const { at, fragments } = news?.at > keptAt ? news : { at: keptAt, fragments: {} };
  const html = (await page.text())
    .replace(/<html/i, (tag) => `${tag} data-kept="${at}"`)
    // An id that was posted already would make the next post count for nothing.
    .replace(/<input type="hidden" name="id" [^>]*>/g, "")
    .replace(/(<likewise-live [^>]*>)[^]*?<\/likewise-live>/g, (old, tag) => {
      if (tag.includes('data-live="status"')) return `${tag}${status(at)}</likewise-live>`;
      return Object.hasOwn(fragments, tag) ? fragments[tag] : old;
    });
  return new Response(html, { headers: page.headers });
}

/** What there is to say of a page that was never kept. It tries again by itself. */
function nothing({ hostname, host }) {
  const isHere = /^(localhost|127\.[\d.]+|\[::1\]|.*\.localhost)$/.test(hostname);
  const why = isHere ? `${TITLE} isn't running on this computer.` : `${TITLE} at ${host} can't be reached.`;
  const html = `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="5"><title>${TITLE}</title></head>
<body><h1>${why}</h1><p>This page wasn't open here before, so it has to wait.</p></body></html>`;
  const headers = { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": "default-src 'none'" };
  return new Response(html, { status: 503, headers });
}

/** The status line of a page that hears nothing: from when it is. */
function status(at) {
  return `<div id="status" class="status" data-state="away" data-pending="0"><span class="now">As of ${time(at)}</span></div>`;
}

/** Time of day, with the date unless it is today. */
function time(at) {
  const date = new Date(at);
  const day = { day: "numeric", month: "long" };
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString("en-GB", { hour: "2-digit", minute: "2-digit", ...(isToday ? {} : day) });
}
