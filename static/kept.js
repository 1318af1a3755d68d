// The page's part of opening while the program is away. The service worker (static/sw.js) keeps pages as the program gives
// them. An open page tells it what it has heard since then, so that the next page begins with the newest that is known.

const TELL_AFTER = 200; // changes within that time are told once

/**
 * Keeps this page: registers the service worker in `script`. `fragments` gives the fragments of the page as they are now, by
 * opening tag.
 */
export function keepPage({ script, fragments }) {
  const workers = navigator.serviceWorker; // only in secure contexts
  const home = new URL("./", new URL(script, location.href)).pathname;
  let registration;
  let timer;
  let untold; // when something was heard before there was a worker

  async function register() {
    try {
      registration = await workers.register(script, { updateViaCache: "none" });
      const { active } = await workers.ready;
      // The worker has kept a page that it opened itself.
      if (!workers.controller) active.postMessage({ keep: location.href, files: files() });
      if (untold) tell(untold);
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

  function tell(at) {
    stop();
    const worker = registration?.active;
    untold = worker ? undefined : at;
    worker?.postMessage({ heard: location.href, news: { at, fragments: fragments() } });
  }

  function stop() {
    clearTimeout(timer);
    timer = undefined;
  }

  if (!workers) return undefined;
  if (document.readyState === "complete") register();
  else addEventListener("load", register);

  return {
    /** The page has heard something new. */
    heard() {
      timer ??= setTimeout(() => tell(Date.now()), TELL_AFTER);
    },
    /** The page hears nothing more. Until now, it was right. */
    lost() {
      tell(Date.now());
    },
    /** The page goes out of use. */
    rest() {
      if (timer !== undefined) tell(Date.now());
    },
  };
}
