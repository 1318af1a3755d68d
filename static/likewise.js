// Likewise in the browser. Without this file the page is a form that works; with it
//
//   a click    is answered at once, kept until the server has stored it, and posted again under the same id until then;
//   the count  follows the server live, without ever going back and forth under the hand that clicks;
//   all tabs   of a store share one live stream, and all stores have a few, because a browser opens only six connections
//              to a host. A page that nobody looks at may have to rest, and catches up when somebody does.
//
// The same file runs twice: in each page, and as the shared worker that owns the streams of all pages.
"use strict";

const ANSWER_WITHIN = 10_000; // a post without an answer for so long is tried again
const STREAMS = 3;            // all that one browser holds open,
const POSTS_AT_ONCE = 2;      // beside which these, and the page itself, still find room among the six connections
const LIVE_WITHIN = 5_000;    // a stream that doesn't open within this time is tried again
const WORKER_WITHIN = 3_000;  // a worker that says nothing for so long after being asked is taken for dead
const STALE_AFTER = 2_000;    // whoever comes back to a page trusts a stream this long after it last spoke
const QUIET_FOR = 2_000;      // trouble that is over by then isn't worth a word
const TRUST_CLICKS = 5_000;   // how long a count with our stored clicks may stay above the server's
const TRUST_COUNT = 1_000;    // how long a count may stay above a lower one that the server sends
const SYNCING_FOR = 600;      // a sync that is over by then isn't worth a word either

/** Milliseconds to wait after the nth failure in a row: 0.3 s doubling up to 5 s, up to half of it taken off by chance. */
function backoff(failures) {
  return Math.min(5_000, 300 * 2 ** Math.min(failures - 1, 10)) * (1 - Math.random() / 2);
}

/** A new UUIDv7: 48 bits of time in milliseconds, the version, and 74 random bits. */
function mintId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let time = Date.now();
  for (let i = 5; i >= 0; i--) {
    bytes[i] = time % 256;
    time = Math.floor(time / 256);
  }
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

const UUID7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;

/**
 * Keeps one EventSource open, and reports {live: "open" or "closed"}, {likes: html} and {status: html}.
 *
 * It never leaves reconnecting to the EventSource, which gives up for good on an answer such as 503.
 */
function openStream(url, report) {
  let source;
  let timer;
  let failures = 0;
  let started = 0;
  let heard = 0;

  function start() {
    close();
    started = Date.now();
    source = new EventSource(url);
    timer = setTimeout(failed, LIVE_WITHIN);
    source.onopen = () => {
      clearTimeout(timer);
      heard = Date.now();
      report({ live: "open" });
    };
    source.onerror = failed;
    for (const name of ["likes", "status"]) {
      source.addEventListener(name, (event) => {
        failures = 0;
        heard = Date.now();
        report({ [name]: event.data });
      });
    }
  }

  function failed() {
    close();
    failures += 1;
    timer = setTimeout(start, backoff(failures));
    report({ live: "closed" });
  }

  function close() {
    clearTimeout(timer);
    source?.close();
    source = undefined;
  }

  /** Someone looks again: after sleep a stream may be dead and not know it. */
  function wake() {
    const now = Date.now();
    if (now - heard > STALE_AFTER && now - started > STALE_AFTER / 2) start();
  }

  start();
  return { wake, close };
}

// ---------------------------------------------------------------------------------------------------------------------
// The shared worker: one for the pages of all stores, each with a port.

function serveTabs() {
  const stores = new Map(); // address of the stream -> store
  const others = new BroadcastChannel("likewise"); // the workers of pages that another version of this file runs in
  let crowded = false;
  let looks = 0;

  function tell(store, news) {
    Object.assign(store.latest, news);
    for (const port of store.tabs.keys()) port.postMessage(news);
  }

  function close(store) {
    store.stream?.close();
    store.stream = undefined;
    store.latest = { live: "resting" }; // nothing older may reach a page that has been loaded since
  }

  const isSeen = (store) => [...store.tabs.values()].includes(true);

  /** Gives the streams to the stores that are seen, then to those that were seen last. */
  function share() {
    const live = [...stores.values()]
      .filter((store) => isSeen(store) || !crowded)
      .sort((a, b) => isSeen(b) - isSeen(a) || b.look - a.look)
      .slice(0, STREAMS);
    for (const store of stores.values()) {
      if (!store.stream || live.includes(store)) continue;
      close(store);
      tell(store, store.latest);
    }
    for (const store of live) {
      if (store.stream) continue;
      tell(store, { live: "closed" });
      store.stream = openStream(store.address, (news) => tell(store, news));
    }
  }

  /** The page behind `port` is there, and somebody sees it or doesn't. */
  function hear(port, address, seen) {
    let store = stores.get(address);
    if (!store) {
      store = { address, tabs: new Map(), look: 0, latest: { live: "resting" } };
      stores.set(address, store);
    }
    if (seen || store.tabs.get(port)) store.look = ++looks;
    store.tabs.set(port, seen);
    if (seen) {
      crowded = false;
      others.postMessage("seen");
      store.stream?.wake();
    }
    share();
    port.postMessage(store.latest); // which also says "I am here", to a tab that may be in doubt
  }

  function leave(port, address) {
    const store = stores.get(address);
    if (!store?.tabs.delete(port)) return;
    if (store.tabs.size === 0) {
      close(store);
      stores.delete(address);
    }
    share();
  }

  /** Somebody looks at a page of another version, whose worker needs the connections of what is hidden here. */
  others.onmessage = () => {
    crowded = true;
    share();
  };

  self.onconnect = ({ ports: [port] }) => {
    port.onmessage = ({ data: { address, seen, left } }) => (left ? leave(port, address) : hear(port, address, seen));
  };
}

// ---------------------------------------------------------------------------------------------------------------------
// The page.

/**
 * The number on the page: what the server says, but at least `floor`, which a click raises at once.
 *
 * So a click shows before it is stored, a like from elsewhere that overtakes it isn't added on top, and the number
 * doesn't fall back when an older count comes in. The floor goes when the server has reached it, or didn't in time.
 */
function makeTally(output, changed) {
  let server = BigInt(output.dataset.count);
  let floor = 0n;
  let open = 0; // clicks of this page that have no answer yet
  let timer;

  const shown = () => (floor > server ? floor : server);

  function paint() {
    const text = String(shown());
    if (output.textContent === text) return;
    output.dataset.count = text;
    output.textContent = text;
    output.parentElement.dataset.digits = text.length;
  }

  function trustFor(milliseconds) {
    clearTimeout(timer);
    if (open > 0) return;
    timer = setTimeout(() => {
      floor = 0n;
      paint();
    }, milliseconds);
  }

  return {
    clicked() {
      clearTimeout(timer);
      open += 1;
      floor = shown() + 1n;
      paint();
    },
    stored() {
      open -= 1;
      trustFor(TRUST_CLICKS);
    },
    refused() {
      open -= 1;
      if (floor > 0n) floor -= 1n;
      trustFor(TRUST_CLICKS);
      paint();
    },
    heard(count) {
      const before = shown();
      server = count;
      if (server >= floor) {
        floor = 0n;
        if (server < before) {
          floor = before;
          trustFor(TRUST_COUNT);
        }
      }
      paint();
      if (shown() > before) changed();
    },
  };
}

/**
 * Clicks that the server hasn't stored yet, oldest first. They are also kept in localStorage, one key a click, so that
 * they outlive the page. Posting an id twice is harmless, so tabs needn't agree on who posts what another one left.
 */
function makeOutbox(action, { changed, stored, refused }) {
  const prefix = `likewise:${action.replace(/\/likes$/, "")}:`;
  const clicks = new Map(); // id -> {own: clicked in this page, since, posting}
  let posting = 0;
  let failures = 0;
  let timer; // set while waiting after a failure
  let earliest = 0; // the server's Retry-After, which nothing hurries
  let kept = true;

  function settle(id) {
    const click = clicks.get(id);
    clicks.delete(id);
    try {
      localStorage.removeItem(prefix + id);
    } catch {
      // Then it wasn't kept either.
    }
    return click;
  }

  function pump() {
    if (timer !== undefined) return;
    for (const [id, click] of clicks) {
      // After a failure, one click finds out whether the server is back.
      if (posting >= (failures > 0 ? 1 : POSTS_AT_ONCE)) break;
      if (!click.posting) post(id, click);
    }
  }

  async function post(id, click) {
    posting += 1;
    click.posting = true;
    const answer = await fetch(action, {
      method: "POST",
      headers: { Accept: "application/json" }, // a word about this like, instead of the page
      body: new URLSearchParams({ id }),
      credentials: "same-origin",
      redirect: "manual", // ours doesn't redirect; a network's login page does
      keepalive: true, // so that a click may be the last thing that happens in a page
      signal: AbortSignal.timeout(ANSWER_WITHIN),
    }).catch(() => undefined);
    const why = isFinal(answer?.status) && (await reason(answer));
    posting -= 1;

    if (answer?.headers.get("Likewise-Stored") === id) {
      failures = 0;
      if (settle(id)?.own) stored();
    } else if (why) {
      if (settle(id)) refused(click.own, why);
    } else {
      click.posting = false;
      pause(answer?.headers.get("Retry-After"));
    }
    changed();
    pump();
  }

  /** Waits, for all clicks alike: what keeps one from being stored keeps them all. */
  function pause(retryAfter) {
    const asked = Math.min(60, Number(retryAfter) || 0) * 1_000;
    if (timer !== undefined && asked === 0) return;
    if (timer === undefined) failures += 1;
    earliest = Date.now() + asked;
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = undefined;
      pump();
    }, Math.max(asked, backoff(failures)));
  }

  /** A click in another tab that has been settled there. */
  addEventListener("storage", ({ key, newValue }) => {
    if (newValue !== null || !key?.startsWith(prefix)) return;
    if (settle(key.slice(prefix.length))?.own) stored();
    changed();
  });

  return {
    add(id) {
      clicks.set(id, { own: true, since: Date.now(), posting: false });
      try {
        localStorage.setItem(prefix + id, "");
      } catch {
        kept = false; // then this click lives as long as the page
      }
      changed();
      pump();
    },
    /** Takes over what a closed page has left. */
    adopt() {
      try {
        for (const key of Object.keys(localStorage)) {
          const id = key.startsWith(prefix) ? key.slice(prefix.length) : "";
          if (UUID7.test(id) && !clicks.has(id)) clicks.set(id, { own: false, since: Date.now(), posting: false });
        }
      } catch {
        // Nothing can have been left.
      }
      changed();
      pump();
    },
    /** The server may be back: don't wait any longer. */
    hurry() {
      const now = Date.now();
      if (now < earliest) return;
      clearTimeout(timer);
      timer = undefined;
      pump();
    },
    get size() { return clicks.size; },
    get kept() { return kept; },
    /** How long the oldest click has been waiting. */
    get delay() {
      const [oldest] = clicks.values();
      return oldest ? Date.now() - oldest.since : 0;
    },
  };
}

/** Whether asking again can't help: a 4xx that is about this request, not about the moment. */
function isFinal(status) {
  return status >= 400 && status < 500 && ![408, 425, 429].includes(status);
}

/** Why our server refused it; nothing when somebody else answered in its place. */
async function reason(answer) {
  if (!answer.headers.get("Content-Type")?.startsWith("application/problem+json")) return undefined;
  const problem = await answer.json().catch(() => undefined);
  return problem?.code && `${problem.detail} ${problem.advice}`;
}

/** Parses a fragment into a document of its own, where nothing runs and nothing is loaded. */
function parse(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

/**
 * The page's end of the live stream: through the shared worker, or through a stream of its own where there is no worker
 * or it doesn't answer. A stream of its own is closed while the tab is hidden.
 *
 * The worker has one name for all stores, so that one place decides who has a stream.
 */
function joinStream(address, hear) {
  const script = document.currentScript.src;
  let port;
  let own;
  let doubt; // runs out when the worker doesn't answer

  function join() {
    leave();
    try {
      const worker = new SharedWorker(script, { name: "likewise" });
      worker.onerror = alone;
      port = worker.port;
    } catch {
      return alone();
    }
    port.onmessage = ({ data }) => {
      clearTimeout(doubt);
      own?.close(); // the worker was late, but it is there
      own = undefined;
      hear(data);
    };
    say();
    doubt = setTimeout(alone, WORKER_WITHIN);
  }

  function say() {
    port.postMessage({ address, seen: !document.hidden });
  }

  function alone() {
    clearTimeout(doubt);
    if (document.hidden) return rest();
    own ??= openStream(address, hear);
  }

  function leave() {
    clearTimeout(doubt);
    port?.postMessage({ address, left: true });
    port?.close();
    port = undefined;
    own?.close();
    own = undefined;
  }

  function wake() {
    if (own) return own.wake();
    if (!port) return join();
    say();
    clearTimeout(doubt);
    doubt = setTimeout(join, WORKER_WITHIN);
  }

  /** A hidden tab leaves its connection to the others. */
  function sleep() {
    if (own) return rest();
    if (port) say();
  }

  function rest() {
    leave();
    hear({ live: "resting" });
  }

  return { join, leave, wake, sleep };
}

function runPage() {
  const root = document.documentElement;
  const form = document.getElementById("like");
  const button = form.querySelector("button");
  const heart = button.querySelector("svg");
  const message = document.getElementById("message");
  const action = form.getAttribute("action");

  // --- Words

  let live = "closed"; // or "open", or "resting" while the worker has no stream for this page
  let lostAt = Date.now();
  let refusal = "";

  function speak() {
    const waiting = `${outbox.size} ${outbox.size === 1 ? "like" : "likes"} waiting to be saved.`;
    const unsafe = outbox.size > 0 && !outbox.kept ? " Keep this page open until then." : "";
    let text = refusal;
    const quiet = Date.now() - lostAt <= QUIET_FOR;
    if (!text && live === "resting" && !quiet) {
      text = "Other pages are live instead. This one goes on when you use it.";
    } else if (!text && live === "closed" && !quiet) {
      text = `Reconnecting… your likes are kept.${outbox.size > 0 ? ` ${waiting}` : ""}${unsafe}`;
    } else if (!text && outbox.delay > QUIET_FOR) {
      text = `${waiting} Trying again…${unsafe}`;
    }
    if (message.textContent !== text) message.textContent = text;
    root.toggleAttribute("data-trouble", text !== "" && !refusal);
    message.dataset.tone = refusal ? "bad" : "";
  }

  function speakSoon() {
    speak();
    setTimeout(speak, QUIET_FOR + 100);
  }

  // --- The heart

  let beats = 0;

  function echo(direction) {
    if (heart.querySelectorAll(`.${direction}`).length >= (direction === "sent" ? 6 : 1)) return;
    const wave = heart.querySelector(".line").cloneNode();
    wave.setAttribute("class", `echo ${direction}`);
    wave.addEventListener("animationend", () => wave.remove());
    heart.append(wave);
  }

  // --- Likes

  const tally = makeTally(document.getElementById("count"), () => {
    if (!document.hidden) echo("received");
  });

  const outbox = makeOutbox(action, {
    changed() {
      root.dataset.unsent = outbox.size;
      speakSoon();
    },
    stored: tally.stored,
    refused(own, why) {
      if (own) tally.refused();
      refusal = `A like was not counted. ${why}`;
    },
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    rouse();
    const id = form.elements.id.value;
    form.elements.id.value = mintId(); // no id is ever used for two clicks
    refusal = "";
    tally.clicked();
    outbox.add(id);
    button.dataset.beat = beats++ % 2;
    echo("sent");
  });

  button.addEventListener("keydown", (event) => {
    if (event.repeat && event.key === "Enter") event.preventDefault(); // a key held down is one click
  });

  // --- Live

  let syncing; // news of a running sync, held back in case it is over in a moment
  let shownStatus = "";

  function showStatus(html) {
    const status = parse(html).getElementById("status");
    if (!status || status.outerHTML === shownStatus) return;
    shownStatus = status.outerHTML;
    document.getElementById("status").replaceWith(document.adoptNode(status));
  }

  function hearStatus(html) {
    const status = parse(html).getElementById("status");
    const busy = status?.dataset.state === "online" && status.dataset.pending !== "0";
    if (busy && syncing) {
      syncing.html = html;
    } else if (busy) {
      syncing = { html };
      syncing.timer = setTimeout(() => {
        showStatus(syncing.html);
        syncing = undefined;
      }, SYNCING_FOR);
    } else {
      clearTimeout(syncing?.timer);
      syncing = undefined;
      showStatus(html);
    }
  }

  function hearLive(state) {
    if (state === live) return;
    live = state;
    root.dataset.live = live;
    if (live === "open") {
      outbox.adopt();
      outbox.hurry();
    } else {
      lostAt = Date.now();
    }
    speakSoon();
  }

  const stream = joinStream(action.replace(/likes$/, "live"), (news) => {
    if (news.likes !== undefined) {
      const count = parse(news.likes).getElementById("count")?.dataset.count;
      if (/^\d{1,20}$/.test(count)) tally.heard(BigInt(count));
    }
    if (news.status !== undefined) hearStatus(news.status);
    if (news.live !== undefined) hearLive(news.live);
  });

  // --- Coming and going

  function back() {
    if (live === "resting") lostAt = Date.now(); // what was lost while nobody looked isn't news
    stream.wake();
    outbox.adopt();
    outbox.hurry();
  }

  /** Of several windows side by side, the one that is used comes first. */
  function rouse() {
    if (live === "resting") back();
  }

  addEventListener("pageshow", (event) => {
    form.elements.id.value = mintId(); // a page from history may hold an id that is already used
    if (event.persisted) stream.join();
    outbox.adopt();
    outbox.hurry();
  });
  addEventListener("pagehide", () => {
    stream.leave();
    hearLive("closed");
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return back();
    stream.sleep();
  });
  addEventListener("online", back);
  addEventListener("focus", rouse);

  root.dataset.live = live;
  stream.join();
}

if (typeof SharedWorkerGlobalScope !== "undefined" && self instanceof SharedWorkerGlobalScope) {
  serveTabs();
} else {
  runPage();
}
