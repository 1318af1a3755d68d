// The page's end of the live stream. It goes through the shared worker, or through a stream of the page's own if there
// is no worker or it doesn't answer. A stream of the page's own is closed while the page is hidden.
//
// A worker may end at any time, and nobody is told. So a visible page asks its worker again and again, and a new worker
// asks for the pages of the one before it.

import { openStream } from "./stream.js";

const ASK_EVERY = 8_000;     // as often as the server says that it is there
const ANSWER_WITHIN = 3_000; // a worker that says nothing for this long after it was asked is taken for dead

/**
 * Follows the stream at `address` with the page's parameters in `set`, through the worker in `script`. What is heard goes
 * to `hear`, as [`openStream`] reports it; `{live: "resting"}` says that the page has left its connection to others.
 */
export function joinStream({ address, set, script }, hear) {
  let port;
  let own;
  let doubt; // runs out when the worker doesn't answer
  let run;   // of the worker that answered last
  let pages; // where workers say that they have begun

  setInterval(() => {
    if (!port || document.hidden) return;
    say("ask");
    expect(replace);
  }, ASK_EVERY);

  function join() {
    hangUp();
    listenForWorkers();
    try {
      // One name for all stores, so that one place decides which of them has a stream. The script's address tells programs
      // under several paths of one site apart.
      const worker = new SharedWorker(script, { type: "module", name: "likewise" });
      worker.onerror = () => {
        hangUp();
        alone();
      };
      port = worker.port;
    } catch {
      return alone();
    }
    port.onmessage = ({ data }) => {
      quiet();
      run = data.run;
      own?.close(); // the worker was late, but it is there
      own = undefined;
      hear(data);
    };
    say("join");
    expect(alone);
  }

  function say(why) {
    port.postMessage({ address, set, seen: !document.hidden, why });
  }

  function expect(otherwise) {
    doubt ??= setTimeout(() => {
      doubt = undefined;
      otherwise();
    }, ANSWER_WITHIN);
  }

  function quiet() {
    clearTimeout(doubt);
    doubt = undefined;
  }

  /** The worker has ended, or hangs. What it said last may be old. */
  function replace() {
    if (!own) hear({ live: "closed" });
    join();
  }

  function alone() {
    quiet();
    if (document.hidden) return rest();
    own ??= openStream(set ? `${address}?${set}` : address, hear);
  }

  function hangUp() {
    quiet();
    port?.postMessage({ address, left: true });
    port?.close();
    port = undefined;
    run = undefined;
  }

  function leave() {
    hangUp();
    pages?.close(); // an open channel would keep the page out of the browser's back/forward cache
    pages = undefined;
    own?.close();
    own = undefined;
  }

  function listenForWorkers() {
    if (pages || typeof BroadcastChannel === "undefined") return;
    pages = new BroadcastChannel("likewise-pages");
    pages.onmessage = ({ data }) => {
      const isOurs = data.script === script;
      if (isOurs && run !== undefined && run !== data.began) join();
    };
  }

  /** Somebody looks at the page again. */
  function wake() {
    own?.wake();
    if (!port) return join();
    say("look");
    expect(replace);
  }

  /** A hidden page leaves its connection to the others. */
  function sleep() {
    if (own) return rest();
    if (port) say("hide");
  }

  function rest() {
    leave();
    hear({ live: "resting" });
  }

  /** Asks the server for everything as it is now. */
  function again() {
    own?.again();
    if (port) say("again");
  }

  return { join, leave, wake, sleep, again };
}
