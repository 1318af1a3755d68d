// What only the page of likes has: a number that never goes back under the hand that clicks, and a heart that beats. It
// uses nothing of likewise.js but its events.

const TRUST_CLICKS = 5_000; // how long a count with our stored clicks may stay above the server's before it is asked
const TRUST_COUNT = 1_000;  // how long a count may stay above a lower one that the server sends

function tell(name, detail) {
  document.dispatchEvent(new CustomEvent(`likewise:${name}`, { detail }));
}

function hearOf(name, listener) {
  document.addEventListener(`likewise:${name}`, listener);
}

/**
 * The number on the page: what the server says, but at least `floor`, which a click raises at once.
 *
 * So a click shows before it is stored, a like from elsewhere that overtakes it isn't added on top, and the number
 * doesn't fall back when an older count comes in. The floor goes when the server has reached it. If the server is late,
 * what we hear may be old: then it is asked, and the floor stays until it has answered.
 */
function makeTally(output, grew) {
  let server = BigInt(output.dataset.count);
  let floor = 0n;
  let open = 0;   // clicks that wait, of this page or of others
  let clicks = 0; // all of them
  let timer;

  const shown = () => (floor > server ? floor : server);

  // An <output> is read aloud at every change. The summary is read aloud in its place, and less often.
  output.setAttribute("aria-live", "off");

  function paint() {
    const text = String(shown());
    if (output.dataset.count === text) return;
    output.dataset.count = text;
    output.textContent = text;
    const { dataset } = output.parentElement;
    dataset.digits = text.length;
    dataset.summary = `${text} ${text === "1" ? "like" : "likes"}`;
  }

  function drop() {
    floor = 0n;
    paint();
  }

  function ask() {
    const known = clicks;
    tell("ask", {
      fragment: "likes",
      answer() {
        if (clicks === known) drop();
      },
    });
  }

  function settled() {
    open -= 1;
    clearTimeout(timer);
    if (open === 0) timer = setTimeout(ask, TRUST_CLICKS);
  }

  return {
    clicked() {
      clearTimeout(timer);
      open += 1;
      clicks += 1;
      floor = shown() + 1n;
      paint();
    },
    stored: settled,
    refused() {
      if (floor > 0n) floor -= 1n;
      settled();
      paint();
    },
    heard(count) {
      const before = shown();
      server = count;
      if (server >= floor) {
        clearTimeout(timer);
        floor = 0n;
        if (server < before) {
          floor = before;
          if (open === 0) timer = setTimeout(drop, TRUST_COUNT);
        }
      }
      paint();
      if (shown() > before) grew();
    },
  };
}

// ---------------------------------------------------------------------------------------------------------------------
// The heart

const button = document.querySelector("#like button");
const heart = button.querySelector("svg");
let beats = 0;

function echo(direction) {
  if (heart.querySelectorAll(`.${direction}`).length >= (direction === "sent" ? 6 : 1)) return;
  const wave = heart.querySelector(".line").cloneNode();
  wave.setAttribute("class", `echo ${direction}`);
  wave.addEventListener("animationend", () => wave.remove());
  heart.append(wave);
}

// ---------------------------------------------------------------------------------------------------------------------
// Likes

const tally = makeTally(document.getElementById("count"), () => {
  if (!document.hidden) echo("received");
});

hearOf("posted", () => {
  tally.clicked();
  button.dataset.beat = beats++ % 2;
  echo("sent");
});
hearOf("waits", tally.clicked);
hearOf("stored", tally.stored);
hearOf("refused", ({ detail }) => {
  tally.refused();
  detail.say = `A like was not counted. ${detail.why}`;
});
hearOf("fragment", (event) => {
  if (event.detail.name !== "likes") return;
  event.preventDefault();
  const count = event.detail.element.querySelector("#count")?.dataset.count;
  if (/^\d{1,20}$/.test(count)) tally.heard(BigInt(count));
});

/** Pages of earlier versions keep no more of a like than its id. They may still be open. */
function adopt(key, value) {
  const { app, base = "" } = document.querySelector("script[data-app]").dataset;
  const prefix = `${app}:${base}:`;
  if (value === "" && key.startsWith(prefix)) {
    tell("post", { form: "likes", fields: [], id: key.slice(prefix.length), own: false });
  }
}

addEventListener("storage", ({ key, newValue }) => key !== null && adopt(key, newValue));
try {
  for (const key of Object.keys(localStorage)) adopt(key, localStorage.getItem(key));
} catch {
  // Nothing can have been left.
}
