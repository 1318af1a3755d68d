// Any app in the browser. Without this file a page is forms that work; with it
//
//   a post     is answered at once, kept until the server has stored it, and posted again under the same id until then;
//   fragments  follow the server live, all that one commit changes at once, and never take away what somebody types;
//   all tabs   of a browser share a few live streams, and see what waits in any of them. A page that nobody looks at may
//              have to rest;
//   the page   opens while its program is away, as it was last, and says so.
//
// The page says who it is in the element that loads this file:
//
//   <script type="module" src="…/likewise.js" data-app="todo" data-base="/s/work" data-forms="add done"
//           data-noun="to-do" data-nouns="to-dos" data-title="Todo" data-keeper="/sw.js?app=todo&title=Todo"></script>
//
// and has what it needs of these:
//
//   <likewise-live class="live" data-live="NAME" data-key="KEY">   a fragment; the one named `status` is the status line. Its
//                                                                  `id` is for other people's scripts
//   <p data-message></p>                                           a place for words
//   <ul data-waiting="NAME"></ul>                                  what waits of the form NAME, or of all forms without NAME
//   data-numbers, data-summary="42 likes"                          numbers and the summary: summary.js says more
//
// The root element says `data-live` (`open`, `closed` or `resting`) and `data-unsent` (how many posts wait). It has
// `data-kept` while the page is one that was kept, and hasn't heard from its program.
//
// An app's own script needs nothing of this file but events on `document`, whose `detail` is
//
//   likewise:posted    {id, form, fields}             somebody posted a form in this page
//   likewise:waits     {id, form, fields}             something waits that was posted in another page
//   likewise:stored    {id, form, fields}             the server has stored one of these
//   likewise:refused   {id, form, fields, why, say}   the server never will; `say` is what the page says, and may be changed
//   likewise:fragment  {name, element}                a fragment has changed; prevent the default to show it another way
//   likewise:live      {state}                        the page is live, or isn't any more
//
// and those that it may send itself:
//
//   likewise:post      {form, fields, id?, own?}      posts as a form would; `own: false` for what another page has left
//   likewise:ask       {fragment, answer}             asks the server for a fragment as it is now, then calls `answer`

import { takeOver, withoutUser } from "./forms.js";
import { mintId } from "./ids.js";
import { keepPage } from "./kept.js";
import { joinStream } from "./link.js";
import { morph } from "./morph.js";
import { makeOutbox } from "./outbox.js";
import { followSummary } from "./summary.js";

const QUIET_FOR = 2_000;  // trouble that is over by then isn't worth a word
const SYNCING_FOR = 600;  // a sync that is over by then isn't worth a word either
const GONE_AFTER = 30_000; // a program that is away this long isn't just starting again
const QUOTED = 60;        // characters of what was refused that the page quotes
const TRIED_FOR = 4_000;    // how long the button says what came of it
const FRESH = 2_000;      // a stream that began so long before the server was asked is an answer, too

const PLACES = ".live[data-live]"; // where fragments stand

const root = document.documentElement;
const script = document.querySelector("script[data-app]");
const { app, title = app, base = "", keeper, forms = "", noun = "event", nouns = "events" } = script.dataset;

function tell(name, detail) {
  return document.dispatchEvent(new CustomEvent(`likewise:${name}`, { detail, cancelable: true }));
}

function hearOf(name, listener) {
  document.addEventListener(`likewise:${name}`, ({ detail }) => listener(detail));
}

// ---------------------------------------------------------------------------------------------------------------------
// Words

let live = "closed"; // or "open", or "resting" while this page has left its connection to others
let turnedAt = Date.now(); // when it was something else
let barred;               // why the program lets this page hear nothing, if it says so
let refusal = "";

function speak() {
  const message = document.querySelector("[data-message]");
  const text = refusal || words();
  if (message && message.textContent !== text) message.textContent = text;
  if (message) message.dataset.tone = refusal ? "bad" : "";
  root.toggleAttribute("data-trouble", text !== "" && !refusal && !isKept() && isDoubtful());
}

/** Whether this page was kept, and hasn't heard from its program. */
function isKept() {
  return root.dataset.kept !== undefined;
}

/** Whether the status line says more than is known: it is old, or it says that all is well while something waits. */
function isDoubtful() {
  const { state } = document.getElementById("status")?.dataset ?? {};
  return live !== "open" || (outbox.waiting.length > 0 && ["none", "online"].includes(state));
}

function words() {
  const { waiting, kept, delay, trouble } = outbox;
  const count = waiting.length;
  const some = `${count} ${count === 1 ? noun : nouns} waiting to be saved.`;
  const unsafe = count > 0 && !kept ? " Keep this page open until then." : "";
  const isLong = Date.now() - turnedAt > QUIET_FOR;
  if (live === "resting" && isLong) return "Other pages are live instead. This one goes on when you use it.";
  if (live === "closed" && barred) return `${barred}${unsafe || " Your clicks are kept."}${count > 0 ? ` ${some}` : ""}`;
  const isGone = isKept() || Date.now() - turnedAt > GONE_AFTER;
  if (live === "closed" && isGone) {
    return `${whereabouts()}${unsafe || " Your clicks are kept."}${count > 0 ? ` ${some}` : ""}`;
  }
  if (live === "closed" && isLong) return `Reconnecting… your ${nouns} are kept.${count > 0 ? ` ${some}` : ""}${unsafe}`;
  if (delay > QUIET_FOR) return `${some} Trying again…${trouble ? ` ${trouble}` : ""}${unsafe}`;
  if (isLong && !isWhole()) return "Part of this page can’t be kept up to date any more. Reload it.";
  return "";
}

/** Why the page hears nothing, as far as the page can know. */
function whereabouts() {
  const isHere = /^(localhost|127\.[\d.]+|\[::1\]|.*\.localhost)$/.test(location.hostname);
  return isHere ? `${title} isn't running on this computer.` : `${title} at ${location.host} can't be reached.`;
}

/** Enough of a text to recognize it by. */
function shortened(text) {
  const letters = [...text.slice(0, 2 * QUOTED + 2)];
  return letters.length > QUOTED ? `${letters.slice(0, QUOTED).join("")}…` : text;
}

function speakSoon() {
  speak();
  setTimeout(speak, QUIET_FOR + 100);
}

/** Lists what waits, wherever the page has a place for it. */
function listWaiting() {
  for (const list of document.querySelectorAll("[data-waiting]")) {
    const mine = outbox.waiting.filter(({ form }) => ["", form].includes(list.dataset.waiting));
    list.replaceChildren(
      ...mine.map(({ label }) => Object.assign(document.createElement("li"), { textContent: label })),
    );
    list.hidden = mine.length === 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Posts

const outbox = makeOutbox({ app, base }, {
  changed() {
    root.dataset.unsent = outbox.waiting.length;
    listWaiting();
    speakSoon();
  },
  found: (entry) => tell("waits", entry),
  stored: (entry) => tell("stored", entry),
  lost: (entry) => tell("refused", { ...entry, why: entry.refused, say: "" }),
  isKept,
  refused(entry) {
    const isBack = !entry.typed || page.giveBack(entry);
    if (isBack || !entry.isSaid) {
      const what = entry.typed && entry.label ? `“${shortened(entry.label)}” was` : `${noun[0].toUpperCase()}${noun.slice(1)}`;
      const detail = { ...entry, why: entry.refused, say: `${what} not saved. ${entry.refused}` };
      if (entry.own && !entry.isSaid) tell("refused", detail);
      refusal = detail.say;
      entry.isSaid = true;
    }
    if (isBack) outbox.drop(entry);
    else outbox.keep(entry);
  },
});

function post(entry) {
  rouse();
  refusal = "";
  tell("posted", entry);
  outbox.add(entry);
}

const page = takeOver({ base, forms: forms.split(" ") }, post);

hearOf("post", ({ form, fields, id = mintId(), own = true }) => {
  const entry = { id, form, fields, label: form, typed: false, own };
  if (own) post(entry);
  else outbox.add(entry);
});

// ---------------------------------------------------------------------------------------------------------------------
// Fragments

const shown = new Map(); // opening tag of a fragment -> its HTML, as it was put in place last
const sent = new Map();  // opening tag of a fragment -> when the stream began that brought it last
let asked = [];          // {fragment, answer, at}: who wants to know how a fragment is now
let syncing;             // news of a running sync, held back in case it is over in a moment

/** Puts everything that one commit changed in place at once. */
function show(fragments) {
  for (const [tag, { html, began }] of Object.entries(fragments)) {
    sent.set(tag, began);
    if (shown.get(tag) === html) continue;
    shown.set(tag, html);
    const fresh = parse(html);
    if (fresh?.dataset.live === "status") holdBack(fresh);
    else if (fresh) place(fresh);
  }
  listWaiting();
  keeping?.heard();
  speak();
}

/** The fragments of this page as they are now, by opening tag. The stream brings those of other tabs, too. */
function fragmentsHere() {
  const places = [...document.querySelectorAll(PLACES)].map(({ dataset }) => `${dataset.live} ${dataset.key}`);
  const isHere = (tag) => nameIn(tag) !== "status" && places.includes(`${nameIn(tag)} ${keyIn(tag)}`);
  return Object.fromEntries([...shown].filter(([tag]) => isHere(tag)));
}

/** Tells those who asked that the page now shows the answer. */
function answer(fragments, unchanged = 0) {
  const heard = Object.entries(fragments).map(([tag, { began }]) => [nameIn(tag), began]);
  const isAnswered = ({ fragment, at }) =>
    unchanged >= at - FRESH || heard.some(([name, began]) => name === fragment && began >= at - FRESH);
  const answered = asked.filter(isAnswered);
  asked = asked.filter((one) => !isAnswered(one));
  for (const one of answered) one.answer();
}

function nameIn(tag) {
  return /data-live="([^"]*)"/.exec(tag)?.[1];
}

function keyIn(tag) {
  return /data-key="([^"]*)"/.exec(tag)?.[1];
}

/**
 * Whether the server still sends every fragment of this page: a stream begins with all that it follows, and one of a newer
 * program may lack some.
 */
function isWhole() {
  const newest = Math.max(...sent.values());
  const tags = [...sent.keys()].filter((tag) => sent.get(tag) === newest);
  const known = new Set(tags.map((tag) => `${nameIn(tag)} ${keyIn(tag)}`));
  return [...document.querySelectorAll(PLACES)].every(({ dataset }) => known.has(`${dataset.live} ${dataset.key}`));
}

/** Parses a fragment in a document of its own, where nothing runs and nothing loads. */
function parse(html) {
  return new DOMParser().parseFromString(html, "text/html").querySelector(PLACES);
}

function place(fresh) {
  const { live: name, key } = fresh.dataset;
  const places = [...document.querySelectorAll(PLACES)];
  for (const old of places.filter(({ dataset }) => dataset.live === name && dataset.key === key)) {
    const element = fresh.cloneNode(true);
    if (tell("fragment", { name, element })) morph(old, element);
  }
}

/** Never shows the status of a sync that is over in a moment. */
function holdBack(fresh) {
  const status = fresh.querySelector("#status");
  const isBusy = status?.dataset.state === "online" && status.dataset.pending !== "0";
  if (isBusy && syncing) {
    syncing.fresh = fresh;
  } else if (isBusy) {
    const timer = setTimeout(() => {
      place(syncing.fresh);
      syncing = undefined;
    }, SYNCING_FOR);
    syncing = { fresh, timer };
  } else {
    clearTimeout(syncing?.timer);
    syncing = undefined;
    place(fresh);
  }
}

function hearLive(state, why) {
  if (why !== barred) {
    barred = why;
    speakSoon();
  }
  if (state === live) return;
  if (live === "open") keeping?.lost();
  live = state;
  turnedAt = Date.now();
  root.dataset.live = live;
  if (live === "open") {
    delete root.dataset.kept;
    outbox.adopt();
    outbox.hurry();
  }
  if (live === "closed") setTimeout(speak, GONE_AFTER + 100);
  tell("live", { state });
  speakSoon();
}

// Other pages with this script have other fragments, and aren't kept.
const isPageOfStore = keeper !== undefined && location.pathname === `${base}/`;
const keeping = isPageOfStore ? keepPage({ script: keeper, fragments: fragmentsHere }) : undefined;

const stream = joinStream(
  {
    address: `${location.origin}${base}/live`,
    set: location.search.slice(1),
    script: withoutUser(new URL("worker.js", import.meta.url)),
  },
  ({ live: state, fragments, unchanged, barred: why }) => {
    if (state === "open") {
      show(fragments);
      answer(fragments, unchanged);
    }
    hearLive(state, why);
  },
);

hearOf("ask", (question) => {
  asked.push({ ...question, at: Date.now() });
  stream.again();
});

// ---------------------------------------------------------------------------------------------------------------------
// The status line, opened

const opened = () => document.querySelector("#status > details[open]");

/** Has the hub tried at once, without leaving the page. The stream brings what comes of it. */
document.addEventListener("submit", async (event) => {
  const { target: form } = event;
  const button = form.querySelector?.("#status .try");
  if (!button || event.defaultPrevented) return;
  event.preventDefault();
  const words = button.textContent;
  button.disabled = true;
  button.textContent = "Trying…";
  const headers = { Accept: "application/json" };
  const answer = await fetch(form.action, { method: "POST", headers, credentials: "same-origin" }).catch(() => undefined);
  // The program answers when the attempt is over. If that was of use, the button is gone.
  button.textContent = answer?.ok ? "Not yet. Try again" : words;
  button.disabled = false;
  setTimeout(() => (button.textContent = words), TRIED_FOR);
});

document.addEventListener("click", ({ target }) => {
  const line = opened();
  if (line && !line.contains(target)) line.open = false;
});

document.addEventListener("keydown", ({ key }) => {
  const line = key === "Escape" && opened();
  if (!line) return;
  if (line.contains(document.activeElement)) line.querySelector("summary").focus();
  line.open = false;
});

// ---------------------------------------------------------------------------------------------------------------------
// Coming and going

function back() {
  if (live === "resting") turnedAt = Date.now(); // what was lost while nobody looked isn't news
  stream.wake();
  outbox.adopt();
  outbox.hurry();
}

/** Of several windows side by side, the one in use comes first. */
function rouse() {
  if (live === "resting") back();
}

addEventListener("pageshow", (event) => {
  page.renewAll();
  if (event.persisted) stream.join();
  outbox.resume();
  outbox.adopt();
  outbox.hurry();
});
addEventListener("pagehide", () => {
  stream.leave();
  outbox.rest();
  hearLive("closed");
  keeping?.rest();
});
document.addEventListener("freeze", () => outbox.rest());
document.addEventListener("resume", () => outbox.resume());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return back();
  stream.sleep();
});
addEventListener("online", back);
addEventListener("focus", rouse);
// A form that was cleared has room for what was refused while somebody typed.
document.addEventListener("reset", () => setTimeout(outbox.giveBack));

for (const fragment of document.querySelectorAll(PLACES)) page.strip(fragment);
root.dataset.live = live;
followSummary();
stream.join();
