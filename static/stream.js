// One live stream, kept open. It is live while something is heard from it: a connection that was accepted once proves
// nothing.
//
// This reads the stream with `fetch`. An EventSource has to know the name of every event beforehand, hides comments and
// the status of an answer, and gives up for good on a 503.

import { backoff } from "./backoff.js";

const OPEN_WITHIN = 5_000;    // a server that doesn't begin to answer within this time is asked again
const SILENT_FOR = 25_000;    // three missed pings: the connection is taken for dead
const LIVED = 10_000;         // a stream that lived this long was a success; the next failure is the first of its row
const STALE_AFTER = 2_000;    // someone who comes back to a page trusts a stream this long after it last spoke
const RESTART_AFTER = 1_000;  // but not when the stream began so recently

/**
 * Keeps the stream at `url` open, and reports `{live: "closed"}` when it is lost, and `{live: "open", fragments, unchanged}`
 * for each commit. `fragments` maps the opening tag of a fragment, which names it, to `{html, began}`: when the stream
 * began that brought it, in milliseconds since 1970. `unchanged` is when a stream began that had nothing new.
 */
export function openStream(url, report) {
  let request;    // aborts the request that is under way
  let timer;      // runs out when nothing is heard, or when it is time to try again
  let failures = 0;
  let began = 0;
  let heardAt = 0;
  let isOpen = false; // the first commit of this stream has arrived
  let whole = 0;      // when the stream began that last brought everything, and to which those with nothing new add
  let last;       // what the server called the last commit; it may then say that nothing has changed since
  let batch = {};

  async function begin() {
    stop();
    const mine = (request = new AbortController());
    began = Date.now();
    isOpen = false;
    batch = {};
    timer = setTimeout(fail, OPEN_WITHIN);
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await fetch(url, {
        headers,
        cache: "no-store",
        credentials: "same-origin",
        redirect: "error", // ours doesn't redirect; a network's login page does
        signal: mine.signal,
      });
      if (mine !== request) return;
      if (answer.ok && answer.headers.get("Content-Type")?.startsWith("text/event-stream")) {
        listen();
        await readEvents(answer.body, (event) => {
          if (mine !== request) return;
          listen();
          if (event) hear(event);
        });
      }
    } catch {
      // It broke off, or was never there.
    }
    if (mine === request) fail();
  }

  /** Something was heard; now the silence begins again. */
  function listen() {
    heardAt = Date.now();
    clearTimeout(timer);
    timer = setTimeout(fail, SILENT_FOR);
  }

  function hear({ name, data, id }) {
    if (id !== undefined) last = id;
    if (name === "ping") return;
    if (name !== "done" && name !== "current") {
      batch[data.slice(0, data.indexOf(">") + 1)] = { html: data, began: isOpen ? whole : began };
      return;
    }
    if (name === "done" && !isOpen) whole = began;
    isOpen = true;
    report({ live: "open", fragments: batch, ...(name === "current" && { unchanged: began }) });
    batch = {};
  }

  function fail() {
    stop();
    failures = isOpen && Date.now() - began > LIVED ? 1 : failures + 1;
    timer = setTimeout(begin, backoff(failures));
    isOpen = false;
    report({ live: "closed" });
  }

  function stop() {
    clearTimeout(timer);
    request?.abort();
    request = undefined;
  }

  /** Someone looks again: after sleep a stream may be dead and not know it. */
  function wake() {
    const now = Date.now();
    if (now - heardAt > STALE_AFTER && now - began > RESTART_AFTER) begin();
  }

  /** Asks the server for everything as it is now. */
  function again() {
    if (isOpen) begin(); // one that has only begun brings it anyway
  }

  begin();
  return { wake, again, close: stop };
}

/** Reads server-sent events, and calls `hear` with each one, and with nothing for bytes that complete none. */
async function readEvents(body, hear) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = { name: "", data: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
    rest = lines.pop();
    hear();
    for (const line of lines) {
      if (line === "") {
        if (event.name) hear({ ...event, data: event.data.join("\n") });
        event = { name: "", data: [] };
        continue;
      }
      const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "event") event.name = text;
      else if (field === "data") event.data.push(text);
      else if (field === "id") event.id = text;
    }
  }
}
