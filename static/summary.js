// What a page says in numbers and in few words:
//
//   data-numbers       of an element: long numbers in it are grouped the way the visitor's language does it;
//   data-summary       of an element in a fragment, such as "42 likes": the page's title begins with it, if the title is one
//                      of `Page::title`, and a screen reader hears it.
//
// A screen reader also hears the page's message and its status line. It hears all of these in one place of their own, and
// seldom: a number that changes ten times a second, each time read aloud, would drown out everything else.

const SPEAK_EVERY = 5_000; // a sentence takes seconds to hear, and the next one cuts it off
const SETTLE = 500;        // what is over by then, or comes together, is one piece of news

/** Latin digits, as in the text around them, which isn't translated. */
const grouping = (() => {
  try {
    return new Intl.NumberFormat(navigator.languages, { numberingSystem: "latn" });
  } catch {
    return new Intl.NumberFormat("en"); // a browser may be told a language that doesn't exist
  }
})();

/** The text with its long numbers grouped. Short ones look the same in every language. */
function grouped(text) {
  return text.replace(/\d{4,}/g, (digits) => grouping.format(BigInt(digits)));
}

function groupAll() {
  for (const element of document.querySelectorAll("[data-numbers]")) {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const { currentNode: node } = texts;
      const text = grouped(node.nodeValue);
      if (node.nodeValue !== text) node.nodeValue = text;
    }
  }
}

/** What can be news: the summary, the message and the status. */
function pieces() {
  const summary = document.querySelector("[data-summary]")?.dataset.summary ?? "";
  const message = document.querySelector("[data-message]")?.textContent ?? "";
  const status = document.querySelector("#status .now") ?? document.getElementById("status");
  return [grouped(summary), message.trim(), (status?.textContent ?? "").trim()];
}

/** Keeps numbers, title and what is read aloud up to date with what the page shows. */
export function followSummary() {
  const title = document.querySelector("title[data-title]");
  const voice = document.createElement("div");
  voice.className = "voice";
  voice.setAttribute("role", "status");
  document.body.append(voice);
  let said = pieces(); // whoever opens a page reads these anyway
  let spokeAt = 0;
  let timer;

  function follow() {
    groupAll();
    const now = pieces();
    if (title) {
      const text = [now[0], title.dataset.title].filter(Boolean).join(" · ");
      if (title.textContent !== text) title.textContent = text;
    }
    if (timer === undefined && now.some((piece, at) => piece !== said[at])) {
      timer = setTimeout(speak, Math.max(SETTLE, spokeAt + SPEAK_EVERY - Date.now()));
    }
  }

  function speak() {
    timer = undefined;
    const now = pieces();
    const news = now.filter((piece, at) => piece !== "" && piece !== said[at]);
    said = now;
    if (news.length === 0) return;
    spokeAt = Date.now();
    voice.textContent = news.join(" · ");
  }

  new MutationObserver(follow).observe(document.documentElement, {
    attributeFilter: ["data-summary"],
    characterData: true,
    childList: true,
    subtree: true,
  });
  follow();
}
