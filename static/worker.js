// The shared worker. It owns the live streams of all pages of one browser, because a browser opens only six connections
// to a host, and posts and pages need some of them.
//
// A page says where it is and whether somebody sees it, and gets what its store's stream says. All pages of a store
// share one stream, each with its own parameters. If there are more stores than streams, the stores that nobody sees
// rest.

import { openStream } from "./stream.js";

const STREAMS = 3;  // all that one browser holds open
const SETS = 64;    // sets of parameters in one stream; the server takes no more

const stores = new Map(); // address of the stream -> store
const pages = new BroadcastChannel("likewise-pages");
// The workers of pages that another version of this file runs in, or another program under another path of this site: all
// of them share the browser's connections.
const others = new BroadcastChannel("likewise");
const run = crypto.getRandomValues(new Uint32Array(2)).join("-"); // tells this worker from one that ended
let crowded = false;
let looks = 0;

self.onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => (data.left ? leave(port, data.address) : hear(port, data));
};

/** Somebody looks at a page of another version or program, whose worker needs the connections of what is hidden here. */
others.onmessage = () => {
  crowded = true;
  share();
};

/**
 * The page behind `port` is there. It says why: to `join`, because somebody may `look` at it or `hide` it, to `ask`
 * whether this worker is there, or to ask the server `again`.
 */
function hear(port, { address, set, seen, why }) {
  let store = stores.get(address);
  if (!store) {
    store = { address, tabs: new Map(), look: 0, sets: [], latest: resting() };
    stores.set(address, store);
  }
  const before = store.tabs.get(port);
  const isLook = seen && why !== "ask";
  if (isLook || (before?.seen && !seen)) store.look = ++looks;
  store.tabs.set(port, { set, seen, look: isLook || !before ? looks : before.look });
  if (isLook) {
    crowded = false;
    others.postMessage("seen");
    store.stream?.wake();
  }
  if (why === "again") store.stream?.again();
  share();
  tellOne(store, port, store.latest); // which also says "I am here", to a page that may be in doubt
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

/** Gives the streams to the stores that are seen, then to those that were seen last. */
function share() {
  const isSeen = (store) => [...store.tabs.values()].some((tab) => tab.seen);
  const live = [...stores.values()]
    .filter((store) => isSeen(store) || !crowded)
    .sort((a, b) => isSeen(b) - isSeen(a) || b.look - a.look)
    .slice(0, STREAMS);
  for (const store of stores.values()) {
    if (!store.stream || live.includes(store)) continue;
    close(store);
    tell(store, store.latest);
  }
  for (const store of live) follow(store);
}

/** Opens the stream of `store`, or opens it anew when a page has parameters that it doesn't follow. */
function follow(store) {
  const sets = setsOf(store);
  if (store.stream && sets.every((set) => store.sets.includes(set))) return;
  close(store);
  store.sets = sets;
  tell(store, { live: "closed" });
  store.stream = openStream(addressOf(store), (news) => tell(store, news));
}

/** The parameters of the store's pages, those that were looked at last first. */
function setsOf(store) {
  const tabs = [...store.tabs.values()].sort((a, b) => b.seen - a.seen || b.look - a.look);
  return [...new Set(tabs.map((tab) => tab.set))].slice(0, SETS);
}

function addressOf({ address, sets }) {
  if (sets.every((set) => set === "")) return address;
  return `${address}?${new URLSearchParams(sets.map((set) => ["live", set]))}`;
}

function close(store) {
  store.stream?.close();
  store.stream = undefined;
  store.latest = resting(); // nothing older may reach a page that has been loaded since
}

function resting() {
  return { live: "resting", fragments: {} };
}

function tell(store, news) {
  store.latest = { ...store.latest, ...news, fragments: { ...store.latest.fragments, ...news.fragments } };
  for (const port of store.tabs.keys()) tellOne(store, port, news);
}

function tellOne(store, port, news) {
  const isFollowed = !store.stream || store.sets.includes(store.tabs.get(port).set);
  port.postMessage({ run, ...(isFollowed ? news : resting()) });
}

// A worker that replaces one that ended knows none of its pages, and hidden ones don't ask.
pages.postMessage({ began: run, script: self.location.href });
