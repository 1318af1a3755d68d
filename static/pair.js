// The page behind a pairing link. The link's secret stands after `#`, which browsers send to no server. This puts it into the
// form, in place of the code that people type without it, and takes it out of the address bar.
//
// The secret and the nonce stay in the entry of the history. So after a reload, or a step back, the button asks for the same
// again, and gets the answer that may have been lost. The two together are worth the browser's token. So they are forgotten
// once this page sees that the browser is paired, unless it was opened with another link.

const form = document.getElementById("pair");
const { code, nonce, secret } = form.elements;

const shown = location.hash.slice(1);
if (/^[0-9a-f]{32}$/.test(shown)) {
  history.replaceState({ secret: shown, nonce: nonce.value }, "", location.pathname);
} else if (document.getElementById("paired")) {
  history.replaceState(null, "", location.pathname);
}

if (history.state?.secret) {
  secret.value = history.state.secret;
  nonce.value = history.state.nonce;
  code.closest("label").remove();
}

// Another link opened in this tab changes nothing but the part after `#`.
addEventListener("hashchange", () => location.reload());
