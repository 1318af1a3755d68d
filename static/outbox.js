// What was posted and isn't stored yet, oldest first. It is also kept in localStorage, one key for each entry, so it
// outlives the page. Only an answer about an entry itself ends its wait.
//
// Entries from all tabs reach the server in the order they were made. A tab posts one at a time, always the oldest, and
// holds a lock meanwhile, so others needn't post the same. Two tabs that post at once would do no harm: an id counts
// once, and each tab keeps the order. Without locks (they need a secure context), a tab posts its own entries in order,
// and those that closed tabs left.

import { backoff } from "./backoff.js";
import { UUID7 } from "./ids.js";

const ANSWER_WITHIN = 10_000;   // a post without an answer for this long is tried again
const TURN_WITHIN = 12_000;     // a tab that takes longer than a post to give others their turn may hang
const LONGEST_PAUSE = 60;       // seconds: the most that a Retry-After is heeded
const MISSING_AGAIN = 30_000;   // how often a form that the server doesn't have is asked for again
const SEEN_AFTER = 1_000;       // what another page posts is usually stored by then, and this page need not show it
const OUTLIVES_PAGE = 32_000;   // bytes of a body that a browser may send after its page is gone; 64 KB for all of them

/** Codes about the event itself: the same post can never succeed. All others are about the moment. */
const FINAL = ["malformed-id", "malformed-form", "malformed-event", "event-refused", "id-taken"];

/** The code of a form that this version of the app doesn't have. Another version may have it again. */
const NO_SUCH_FORM = "not-found";

/**
 * An outbox of the store at `base`.
 *
 * An entry is `{id, form, fields, label, typed, order, since}`: the form's name, its fields as pairs in order, what to call
 * it, whether a person typed some of it. `own` marks those that were made in this page. `isSeen` marks those that the app's
 * script knows of: its own, and others that turned out to wait. When the server has refused one, `refused` is the reason; it stays
 * until the person has it back.
 *
 * The callbacks hear that something has `changed`; that another page's entry is `found` to wait; that an entry is `stored`
 * or `refused`, or was refused in another page and is `lost` here. `isKept` says whether the page knows that the server is
 * away.
 */
export function makeOutbox({ app, base }, { changed, found, stored, refused, lost, isKept }) {
  const prefix = `${app}:${base}:`;
  const entries = new Map(); // by id
  let pumping = false;
  let failures = 0;
  let trouble = "";  // why the last post failed, in the server's words
  let timer;         // set while waiting after a failure
  let earliest = 0;  // the server's Retry-After, which nothing hurries
  let kept = true;
  let resting;       // aborts the wait for the lock, and gives the lock back
  let later;         // set while forms are missing, until they are asked for again
  const missing = new Set(); // forms that the server didn't have when it was asked last; their entries hold no others up

  const waiting = () =>
    [...entries.values()].filter((entry) => !entry.refused).sort((a, b) => a.order - b.order || (a.id < b.id ? -1 : 1));
  const due = () => waiting().filter((entry) => !missing.has(entry.form));

  // --- What is kept

  function write(entry) {
    const { own, isSaid, isSeen, ...rest } = entry;
    try {
      localStorage.setItem(prefix + entry.id, JSON.stringify(rest));
    } catch {
      kept = false; // then this entry lives as long as the page
    }
  }

  function forget(id) {
    entries.delete(id);
    try {
      localStorage.removeItem(prefix + id);
    } catch {
      // Then it wasn't kept either.
    }
  }

  /** Takes over an entry from another page. */
  function take(key, value) {
    const id = key.slice(prefix.length);
    const entry = key.startsWith(prefix) && UUID7.test(id) && parse(value);
    if (!entry) return;
    const known = entries.get(id);
    if (known) known.refused = entry.refused;
    else {
      entries.set(id, { ...entry, id, own: false, isSeen: false });
      seeLater(id);
    }
  }

  /** Tells of what another page has posted, if it still waits then. While the server is away, that is certain. */
  function seeLater(id) {
    if (isKept()) see(id);
    else setTimeout(see, SEEN_AFTER, id);
  }

  function see(id) {
    const entry = entries.get(id);
    if (!entry || entry.isSeen || entry.refused) return;
    entry.isSeen = true;
    found(entry);
    changed();
  }

  function takeAll() {
    try {
      for (const key of Object.keys(localStorage)) take(key, localStorage.getItem(key));
    } catch {
      // Nothing can have been left.
    }
  }

  /** Something happened to an entry in another tab: it was made there, stored, or refused. */
  addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(prefix)) return;
    const entry = entries.get(key.slice(prefix.length));
    if (!entry) {
      if (newValue !== null) setTimeout(takeLeft, isKept() ? 0 : SEEN_AFTER, key);
      return;
    }
    if (newValue === null) {
      entries.delete(entry.id);
      if (entry.isSeen && !entry.refused) stored(entry);
    } else {
      take(key, newValue);
      if (entry.own && entry.refused) refused(entry);
      else if (entry.isSeen && entry.refused) lost(entry);
    }
    changed();
  });

  /** Takes over what another page has posted, if it still waits. */
  function takeLeft(key) {
    take(key, localStorage.getItem(key));
    see(key.slice(prefix.length));
    changed();
  }

  function giveBack() {
    for (const entry of [...entries.values()]) if (entry.refused) refused(entry);
  }

  // --- Posting

  async function pump() {
    if (pumping || resting?.signal.aborted || timer !== undefined || due().length === 0) return;
    pumping = true;
    await inTurn(async (isOver) => {
      if (navigator.locks) takeAll(); // others may have made something before us, or posted it
      for (let [next] = due(); next && !isOver(); [next] = due()) {
        if (!(await post(next))) return;
      }
    });
    pumping = false;
    if (missing.size > 0) later ??= setTimeout(askForMissing, MISSING_AGAIN);
    pump(); // for what was made in between
  }

  /** Calls `work` while no other tab does, unless the tab that has its turn hangs. */
  async function inTurn(work) {
    resting ??= new AbortController();
    const { signal } = resting;
    const isOver = () => signal.aborted;
    if (!navigator.locks) return work(isOver);
    const wait = new AbortController();
    const timer = setTimeout(() => wait.abort(), TURN_WITHIN);
    const over = new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    over.then(() => wait.abort());
    let hadTurn = false;
    const turn = () => {
      hadTurn = true;
      clearTimeout(timer);
      return Promise.race([work(isOver), over]);
    };
    await navigator.locks.request(prefix, { signal: wait.signal }, turn).catch(() => {});
    clearTimeout(timer);
    if (!hadTurn && !isOver()) await work(isOver);
  }

  /** Posts one entry, and says whether the next one may be posted now. */
  async function post(entry) {
    const body = new URLSearchParams([["id", entry.id], ...entry.fields]).toString();
    const answer = await fetch(`${location.origin}${base}/${entry.form}`, {
      method: "POST",
      headers: {
        Accept: "application/json", // a word about this entry, instead of a page
        "Content-Type": "application/x-www-form-urlencoded",
      },
      body,
      credentials: "same-origin",
      redirect: "manual", // ours doesn't redirect; a network's login page does
      keepalive: body.length < OUTLIVES_PAGE, // so that a post may be the last thing that happens in a page
      signal: AbortSignal.timeout(ANSWER_WITHIN),
    }).catch(() => undefined);
    const problem = answer && !answer.ok && (await problemOf(answer));

    if (answer?.headers.get("Likewise-Stored")?.toLowerCase() === entry.id.toLowerCase()) {
      settled(entry, stored);
    } else if (problem && FINAL.includes(problem.code)) {
      entry.refused = `${problem.detail ?? ""} ${problem.advice ?? ""}`.trim() || problem.code;
      if (!entry.own) write(entry); // for the page that made it, or the next one
      settled(entry, refused);
    } else if (problem?.code === NO_SUCH_FORM) {
      missing.add(entry.form);
      trouble = `This version has no form “${entry.form}”.`;
      changed();
    } else {
      trouble = problem?.detail ?? "";
      pause(answer?.headers.get("Retry-After"));
      changed();
      return false;
    }
    return true;
  }

  function settled(entry, tell) {
    failures = 0;
    trouble = "";
    // Another tab may have been quicker.
    if (entries.get(entry.id) === entry) {
      if (!entry.refused) forget(entry.id);
      if (entry.own) tell(entry);
      else if (entry.isSeen) (entry.refused ? lost : stored)(entry);
    }
    changed();
  }

  function askForMissing() {
    clearTimeout(later);
    later = undefined;
    missing.clear();
    pump();
  }

  /** Pauses all entries: what keeps one from being stored keeps them all. */
  function pause(retryAfter) {
    const asked = Math.min(LONGEST_PAUSE, Number(retryAfter) || 0) * 1_000;
    failures += 1;
    earliest = Date.now() + asked;
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = undefined;
      pump();
    }, Math.max(asked, backoff(failures)));
  }

  return {
    add(entry) {
      const newest = Math.max(0, ...waiting().map((known) => known.order));
      const whole = { ...entry, order: Math.max(Date.now(), newest + 1), since: Date.now(), own: entry.own ?? true, isSeen: true };
      entries.set(entry.id, whole);
      write(whole);
      if (!whole.own) found(whole);
      changed();
      pump();
    },
    /** Takes over what closed pages left, and reports what was refused. */
    adopt() {
      takeAll();
      giveBack();
      changed();
      pump();
    },
    giveBack,
    /** Forgets a refused entry, because the person has it back. */
    drop(entry) {
      forget(entry.id);
      changed();
    },
    /** Keeps a refused entry that can't be given back to the person now. */
    keep: write,
    /** The server may be back: don't wait any longer. */
    hurry() {
      if (Date.now() < earliest) return;
      clearTimeout(timer);
      timer = undefined;
      askForMissing();
    },
    /** The page goes out of use. Another one may need the lock, and a page with a lock can't be kept for going back. */
    rest() {
      resting ??= new AbortController();
      resting.abort();
    },
    /** The page is used again. */
    resume() {
      if (resting?.signal.aborted) resting = undefined;
      pump();
    },
    get waiting() { return waiting(); },
    get kept() { return kept; },
    get trouble() { return trouble; },
    /** How long the oldest entry has been waiting. */
    get delay() {
      const [oldest] = waiting();
      return oldest ? Date.now() - oldest.since : 0;
    },
  };
}

/** Why our server didn't store it, or nothing if somebody else answered in its place. */
async function problemOf(answer) {
  if (!answer.headers.get("Content-Type")?.startsWith("application/problem+json")) return undefined;
  return answer.json().catch(() => undefined);
}

/** An entry as it was kept, or nothing if it isn't one. */
function parse(value) {
  try {
    const entry = JSON.parse(value);
    const isPair = (pair) => Array.isArray(pair) && pair.length === 2 && pair.every((part) => typeof part === "string");
    const isWhole = typeof entry?.form === "string" && Array.isArray(entry.fields) && entry.fields.every(isPair);
    return isWhole && { label: "", since: Date.now(), ...entry, order: Number(entry.order) || 0 };
  } catch {
    return undefined;
  }
}
