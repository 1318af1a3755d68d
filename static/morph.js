// Makes one element like another with as few changes as possible. Focus, selection, half-typed text, open details and
// scrolling stay where they are.
//
// Children are paired by what they are, not by where they stand: an item that moves takes along what somebody types in
// it. Two elements are the same if they have the same `id`, or are equal, or hold a form with the same hidden fields.
// If your items have none of these, give them an `id`.

/** Makes `old`, which is on the page, like `fresh`, which is not and is used up. */
export function morph(old, fresh) {
  const active = document.activeElement;
  const selection = selectionOf(active);
  morphElement(old, fresh);
  if (active?.isConnected && document.activeElement !== active) {
    active.focus({ preventScroll: true });
    if (selection) active.setSelectionRange(...selection);
  }
}

function morphElement(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  morphAttributes(old, fresh);
  // What a script of the page fills in is its own.
  if (old.hasAttribute("data-waiting")) return;
  morphChildren(old, fresh);
}

function morphAttributes(old, fresh) {
  // Whether details or a dialog are open is up to the person.
  const isTheirs = (name) => name === "open" && ["DETAILS", "DIALOG"].includes(old.nodeName);
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !isTheirs(name)) old.removeAttribute(name);
  }
  // The value of a field stays as it was typed: the browser takes a new attribute for a new default.
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !isTheirs(name)) old.setAttribute(name, value);
  }
}

function morphChildren(old, fresh) {
  const partners = pair([...old.childNodes], [...fresh.childNodes]);
  const kept = new Set(partners.values());
  for (const child of [...old.childNodes]) if (!kept.has(child)) remove(child);
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    while (place && !kept.has(place)) place = place.nextSibling; // what somebody still types in
    const partner = partners.get(child);
    if (!partner) {
      old.insertBefore(child, place);
      continue;
    }
    if (partner === place) place = place.nextSibling;
    else move(old, partner, place);
    if (partner.nodeType === Node.ELEMENT_NODE) morphElement(partner, child);
    else if (partner.nodeValue !== child.nodeValue) partner.nodeValue = child.nodeValue;
  }
}

/** Which old node becomes which fresh one. The surest signs come first. */
function pair(olds, freshes) {
  const partners = new Map(); // fresh -> old
  const free = new Set(olds);
  const forms = new Map([...olds, ...freshes].map((node) => [node, formsIn(node)]));
  const isSame = [
    (a, b) => a.id && a.id === b.id,
    (a, b) => a.isEqualNode(b),
    (a, b) => forms.get(a).some((form) => forms.get(b).includes(form)),
    // Two elements that say who they are, and differ, are not one.
    (a, b) => !a.id && !b.id && !(forms.get(a).length > 0 && forms.get(b).length > 0),
  ];
  for (const same of isSame) {
    for (const fresh of freshes) {
      if (partners.has(fresh)) continue;
      for (const old of free) {
        if (old.nodeName !== fresh.nodeName || !same(old, fresh)) continue;
        partners.set(fresh, old);
        free.delete(old);
        break;
      }
    }
  }
  return partners;
}

/** The forms in an element that have hidden fields, each as what it is about. */
function formsIn(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return [];
  const forms = [...(node.matches("form") ? [node] : []), ...node.querySelectorAll("form")];
  return forms.flatMap((form) => {
    const fields = [...form.querySelectorAll("input[type=hidden][name]:not([name=id])")];
    const about = fields.map((field) => `${field.name}=${field.value}`).join("&");
    return about ? [`${form.getAttribute("action")}?${about}`] : [];
  });
}

function move(parent, child, before) {
  // Where the browser can, it moves an element without taking the focus away.
  if (parent.moveBefore && child.nodeType === Node.ELEMENT_NODE) parent.moveBefore(child, before);
  else parent.insertBefore(child, before);
}

/** Removes a node, unless somebody has typed in it: then it goes with the first change after they are done. */
function remove(node) {
  const fields = node.querySelectorAll ? [node, ...node.querySelectorAll("input, textarea, select")] : [];
  if (!fields.some(isDirty)) node.remove();
}

/** Whether a field holds something that a person has put there. */
export function isDirty(field) {
  if (field.type === "hidden") return false;
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (field.nodeName === "SELECT") return isChosen(field);
  if (field.nodeName === "INPUT") return field.value !== valueAtFirst(field);
  return field.nodeName === "TEXTAREA" && field.value !== field.defaultValue;
}

/** Whether other options are selected than at first. Where nothing else is said, that is the first one. */
function isChosen({ options, multiple, size }) {
  const isSaid = [...options].some((option) => option.defaultSelected);
  if (isSaid || multiple || size > 1) return [...options].some((option) => option.selected !== option.defaultSelected);
  return [...options].find((option) => !option.disabled)?.selected === false;
}

/** What an input holds before anybody touches it: a range or a colour has a value without being given one. */
function valueAtFirst(field) {
  const untouched = document.createElement("input");
  for (const name of ["type", "min", "max", "step", "value"]) {
    if (field.hasAttribute(name)) untouched.setAttribute(name, field.getAttribute(name));
  }
  return untouched.value;
}

function selectionOf(element) {
  try {
    const { selectionStart, selectionEnd, selectionDirection } = element;
    return typeof selectionStart === "number" && [selectionStart, selectionEnd, selectionDirection];
  } catch {
    return undefined; // a field without one
  }
}
