// The page behind a pairing link. The link's secret stands after `#`, which browsers send to no server. This puts it into the
// form, in place of the code that people type without it, and takes it out of the address bar.

const form = document.getElementById("pair");
const { code, secret } = form.elements;

// After a reload, the secret is in the history's entry alone.
const shown = location.hash.slice(1) || history.state?.secret || "";

if (/^[0-9a-f]{32}$/.test(shown)) {
  history.replaceState({ secret: shown }, "", location.pathname);
  secret.value = shown;
  code.disabled = true;
  code.closest("label").hidden = true;
}
