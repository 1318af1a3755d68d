// <likewise-button item="my-post">: a like button for any page. It needs nothing of the page but this script.
//
// A click is kept in the site's storage under an id of its own and sent until it is stored, so it counts once, over
// reloads, from any tab. One stream serves all buttons of a page and all tabs of a site: a lock elects a tab that reads it,
// and a channel tells the others. Without JavaScript, the content of the element stands.
//
// It is sent without comments and indentation, and may take 3 KB then, in gzip.
(() => {
  // An old browser keeps the content of the element.
  if (!document.adoptedStyleSheets || customElements.get('likewise-button')) return;
  const script = document.currentScript ?? document.querySelector('script[src$="/embed.js"]');
  const api = new URL('embed/v1/', script.src).href;
  const buttons = new Set();
  // By item. A plain object would have items such as "constructor" from the start.
  const byItem = () => Object.create(null);
  // What each item shows: the newest count, and at least what this page has shown, since likes only grow.
  const counts = byItem();
  const least = byItem();

  const entries = byItem();
  // What this browser has of an item: the id of its like, and the ids that aren't stored yet.
  const kept = (item) => {
    try {
      entries[item] = JSON.parse(localStorage[api + item]);
    } catch {}
    return (entries[item] ??= { waiting: [] });
  };
  const keep = (item, entry) => {
    entries[item] = entry;
    try {
      localStorage[api + item] = JSON.stringify(entry);
    } catch {}
  };

  // A UUIDv7: 48 bits of time, the version, and random bits.
  const newId = () => {
    const hex = Array.from(crypto.getRandomValues(new Uint8Array(18)), (byte) => (byte % 16).toString(16)).join('');
    return (Date.now().toString(16).padStart(12, 0) + hex).replace(/(.{8})(.{4})(...)(...)/, '$1-$2-7$3-a$4-');
  };

  const show = (item, words) => {
    for (const button of buttons) if (!item || button.item === item) button.show(words);
  };

  const sending = byItem();
  const send = async (item, pause = 4) => {
    if (sending[item]) return;
    sending[item] = 1;
    let words;
    try {
      for (let id; !words && (id = kept(item).waiting[0]); ) {
        const { headers, status } = await fetch(`${api}${encodeURIComponent(item)}/likes`, {
          method: 'POST',
          headers: { accept: 'application/json' },
          body: new URLSearchParams({ id }),
          keepalive: true,
        });
        const entry = kept(item);
        if (headers.get('likewise-stored') !== id) {
          if ([400, 404, 409, 422].includes(status)) {
            // It can never be stored.
            least[item] = entry.liked = 0;
            words = "This can't be liked.";
          } else {
            words = 'Too much at once. Your like is kept.';
            pause = +headers.get('retry-after') || pause;
            continue;
          }
        }
        entry.waiting = entry.waiting.filter((other) => other !== id);
        keep(item, entry);
      }
    } catch {
      words = 'No connection. Your like is kept.';
    }
    sending[item] = 0;
    if (kept(item).waiting[0]) setTimeout(send, pause * (1 + Math.random()) * 1e3, item, Math.min(pause * 2, 60));
    show(item, words);
  };

  // Only in the tab that reads the stream: the items that any tab shows, newest last.
  const wanted = new Set();
  let elected, leads, source, timer;
  const channel = new BroadcastChannel(api);
  const tell = (news) => {
    for (const item in news) {
      counts[item] = news[item] ?? counts[item];
      // What this browser keeps isn't counted yet.
      least[item] ??= counts[item] + kept(item).waiting.length;
    }
    show();
  };
  const heard = (news) => {
    tell(news);
    channel.postMessage({ news: counts });
  };
  // An address has an end. Those who are cut off aren't live.
  const list = () => [...wanted].reverse().slice(0, 100).map(encodeURIComponent).join().slice(0, 7e3);
  const read = () => {
    source?.close();
    source = new EventSource(`${api}live?items=${list()}`);
    source.onmessage = ({ data }) => heard(JSON.parse(data));
    // A stream that broke off comes back by itself. One that was refused doesn't.
    source.onerror = () => source.readyState === 2 && poll();
  };
  const later = (pause) => {
    clearTimeout(timer);
    timer = setTimeout(read, pause);
  };
  const poll = async () => {
    later(3e4 * (1 + Math.random()));
    try {
      const answer = await fetch(`${api}counts?items=${list()}`);
      if (answer.ok) heard(await answer.json());
    } catch {}
  };
  const want = (items) => {
    const before = wanted.size;
    for (const item of items) wanted.add(item);
    if (wanted.size > before) later(20);
    else channel.postMessage({ news: counts });
  };
  const ask = () => {
    const items = Array.from(buttons, (button) => button.item);
    if (leads) want(items);
    else channel.postMessage({ items });
  };
  channel.onmessage = ({ data: { news, items } }) => {
    if (news) tell(news);
    else if (!items) ask();
    else if (leads) want(items);
  };
  const lead = () => {
    leads = true;
    ask();
    channel.postMessage({});
    // Until this page is gone.
    return new Promise(() => {});
  };
  addEventListener('online', () => buttons.forEach(({ item }) => send(item)));
  addEventListener('storage', () => show());

  const style = new CSSStyleSheet();
  style.replaceSync(`
    :host { display: inline-block; vertical-align: middle; }
    :host([hidden]) { display: none; }
    button {
      display: flex; align-items: center; justify-content: center; gap: .4em; box-sizing: border-box; cursor: pointer;
      inline-size: 100%;
      block-size: var(--likewise-size, 2.5em); padding: 0 .9em; font: inherit; color: inherit;
      background: var(--likewise-background, none); border-radius: var(--likewise-radius, 9em);
      border: 1px solid var(--likewise-border, color-mix(in srgb, currentcolor 40%, transparent));
    }
    :focus-visible { outline: 2px solid; outline-offset: 2px; }
    svg { inline-size: 1.2em; fill: none; stroke: var(--likewise-heart, #e0245e); stroke-width: 2; }
    .on svg { fill: var(--likewise-heart, #e0245e); }
    .late { border-style: dashed; }
    [part=count] { min-inline-size: 4ch; text-align: start; font-variant-numeric: tabular-nums; }
    [part=words] { position: absolute; clip-path: inset(50%); white-space: nowrap; }
    @media (prefers-reduced-motion: no-preference) { svg { transition: scale .2s; } :active svg { scale: 1.4; } }
    @media (forced-colors: active) { svg { stroke: currentcolor; } .on svg { fill: currentcolor; } }
  `);
  const make = (name, part, into) => {
    const element = document.createElement(name);
    element.part = part;
    return into.appendChild(element);
  };

  customElements.define('likewise-button', class extends HTMLElement {
    static observedAttributes = ['item'];

    attributeChangedCallback() {
      if (this.button) this.connectedCallback();
    }

    connectedCallback() {
      if (!this.button) {
        const root = this.attachShadow({ mode: 'open' });
        root.adoptedStyleSheets = [style];
        this.button = make('button', 'button', root);
        this.button.type = 'button';
        this.button.onclick = () => this.like();
        const svg = 'http://www.w3.org/2000/svg';
        const heart = this.button.appendChild(document.createElementNS(svg, 'svg'));
        heart.setAttribute('viewBox', '0 0 24 24');
        heart.appendChild(document.createElementNS(svg, 'path'))
          .setAttribute('d', 'M12 21C5 15 2 12 2 8a5 5 0 0 1 10-1 5 5 0 0 1 10 1c0 4-3 7-10 13z');
        make('span', 'words', this.button).textContent = this.getAttribute('label') ?? 'Like';
        this.count = make('span', 'count', this.button);
        this.status = make('span', 'words', root);
        this.status.role = 'status';
      }
      // Without a name, an item is the page, at its canonical address.
      const { host, pathname } = new URL(document.querySelector('link[rel=canonical]')?.href || location);
      this.item = this.getAttribute('item') || (host + pathname).replaceAll(',', '%2C');
      buttons.add(this);
      ask();
      send(this.item);
      if (elected) return;
      elected = true;
      // Without a secure context there are no locks. Then each tab has a stream.
      if (navigator.locks) navigator.locks.request(api, lead).catch(lead);
      else lead();
    }

    disconnectedCallback() {
      buttons.delete(this);
    }

    like() {
      const { item } = this;
      const { liked, waiting } = kept(item);
      if (liked && !this.hasAttribute('many')) return this.show('You liked this.');
      const id = newId();
      least[item] = this.number() + 1;
      keep(item, { liked: id, waiting: [...waiting, id] });
      show(item, 'Liked.');
      send(item);
    }

    number() {
      return Math.max(counts[this.item] || 0, least[this.item] || 0);
    }

    show(words) {
      const { liked, waiting } = kept(this.item);
      let number = this.number();
      const isKnown = number || this.item in counts;
      try {
        number = new Intl.NumberFormat(this.closest('[lang]')?.lang || [], { notation: 'compact' }).format(number);
      } catch {}
      if (isKnown) this.count.textContent = number;
      if (!this.hasAttribute('many')) this.button.ariaPressed = !!liked;
      this.button.className = (liked ? 'on ' : '') + (waiting[0] ? 'late' : '');
      if (words) this.status.textContent = this.button.title = words;
    }
  });
})();
