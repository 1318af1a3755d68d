// The page's part of opening while the program is away. The service worker (static/sw.js) keeps pages as the program gives
// them. What an open page hears since then is kept here, so that the next page begins with the newest that is known.

const WRITE_AFTER = 200; // changes within that time are written once

/**
 * Keeps this page: registers the service worker in `script`, which the app's name and the script's folder name the cache of.
 * `fragments` gives the fragments of the page as they are now, by opening tag.
 */
export function keepPage({ app, script, fragments }) {
  const workers = navigator.serviceWorker; // only in secure contexts
  const home = new URL("./", new URL(script, location.href)).pathname;
  const cacheName = `likewise-page:${app}:${home}`;
  const news = new URL(`live${location.search}`, location.href).href;
  let timer;

  async function register() {
    try {
      await workers.register(script, { updateViaCache: "none" });
      // The worker has kept a page that it opened itself.
      if (!workers.controller) (await workers.ready).active.postMessage({ keep: location.href, files: files() });
    } catch {
      // Not allowed here, as in a private window. The page is as good, while the program runs.
    }
  }

  /** The static files that the page has loaded. Its text doesn't name those that a stylesheet or a script names. */
  function files() {
    const loaded = performance.getEntriesByType("resource").map(({ name }) => new URL(name));
    const isOurs = ({ origin, pathname }) => origin === location.origin && pathname.startsWith(`${home}static/`);
    return loaded.filter(isOurs).map(({ pathname }) => pathname);
  }

  async function write(at) {
    stop();
    try {
      // The service worker makes the cache, and removes it when another program is in the place of ours.
      if (!(await caches.has(cacheName))) return;
      const cache = await caches.open(cacheName);
      await cache.put(news, new Response(JSON.stringify({ at, fragments: fragments() })));
      if (!(await workers.getRegistration(home))) await caches.delete(cacheName);
    } catch {
      // No room. The page is then older when it opens, and says so.
    }
  }

  function stop() {
    clearTimeout(timer);
    timer = undefined;
  }

  if (!workers || !self.caches) return undefined;
  if (document.readyState === "complete") register();
  else addEventListener("load", register);

  /** Writes soon, so that a page which goes out of use writes nothing more. */
  function writeIn(milliseconds) {
    stop();
    timer = setTimeout(write, milliseconds, Date.now());
  }

  return {
    /** The page has heard something new. */
    heard() {
      if (timer === undefined) writeIn(WRITE_AFTER);
    },
    /** The page hears nothing more. Until now, it was right. */
    lost() {
      writeIn(0);
    },
    /** The page goes out of use. */
    rest: stop,
  };
}
