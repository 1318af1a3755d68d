// The page's forms. A post that the script takes over is answered at once: the form clears, and the post is listed as
// waiting. If the server refuses it, it comes back into the form, to be edited.
//
// The script takes a form over if it posts to `BASE/NAME` and NAME is one of the app's forms.

import { mintId } from "./ids.js";
import { isDirty } from "./morph.js";

const GIVES = ":not([type=hidden], [type=submit], [type=button], [type=image], [type=reset], [type=file])";

/** The forms of the app whose store is at `base`; `posted` gets an entry for the outbox for each submit. */
export function takeOver({ base, forms }, posted) {
  const addresses = new Map(forms.map((name) => [`${location.origin}${base}/${name}`, name]));

  /** The name of the app's form that an element is, if it is one. */
  function nameOf(form, submitter) {
    // By attribute: a field named `action` hides the property of that name.
    if (form.getAttribute("method")?.toLowerCase() !== "post" || form.hasAttribute("enctype")) return undefined;
    if (!["", "_self"].includes(form.getAttribute("target") ?? "")) return undefined;
    const action = submitter?.getAttribute("formaction") ?? form.getAttribute("action") ?? "";
    return addresses.get(withoutUser(action));
  }

  const all = () => [...document.forms].filter((form) => nameOf(form));

  document.addEventListener("submit", (event) => {
    const { target: form, submitter } = event;
    const name = nameOf(form, submitter);
    if (!name || event.defaultPrevented) return;
    event.preventDefault();
    const fields = fieldsOf(form, submitter);
    const id = idFor(form, fields);
    const controls = editable(form);
    posted({
      id,
      form: name,
      fields: fields.filter(([field]) => field !== "id"),
      label: labelOf(controls) || submitter?.textContent.trim() || name,
      typed: controls.some((control) => control.type !== "checkbox" && control.type !== "radio"),
    });
    HTMLFormElement.prototype.reset.call(form);
    renew(form);
  });

  document.addEventListener("keydown", (event) => {
    // A key held down is one post.
    const isHeld = event.repeat && event.key === "Enter" && event.target.nodeName !== "TEXTAREA";
    if (isHeld && event.target.form && nameOf(event.target.form)) event.preventDefault();
  });

  return {
    /** Gives every form an id of its own: a page from history may hold one that is already used. */
    renewAll: () => all().forEach(renew),

    /** Removes the ids from forms inside fragments: the stream sends none, and the script mints them. */
    strip(element) {
      for (const form of element.querySelectorAll("form")) if (nameOf(form)) idField(form)?.remove();
    },

    /** Puts what was refused back into its form, and says whether it could: nothing half-typed is overwritten. */
    giveBack(entry) {
      const isAbout = (form) => hiddenFields(form).every(([name, value]) => has(entry.fields, name, value));
      const form = all().find((form) => nameOf(form) === entry.form && isAbout(form));
      if (!form || editable(form).some(isDirty)) return false;
      const left = [...entry.fields];
      for (const control of editable(form)) fill(control, left);
      return true;
    },
  };
}

/** An address without user and password. A page that was opened with them has them in all of its addresses. */
export function withoutUser(address) {
  const url = new URL(address, location.href);
  return `${url.origin}${url.pathname}`;
}

/** The fields that a submit sends, in order, with the button that was pressed. */
function fieldsOf(form, submitter) {
  const fields = [...new FormData(form)].filter(([, value]) => typeof value === "string");
  if (submitter?.name) fields.push([submitter.name, submitter.value]);
  return fields;
}

/** The ids that were put into forms here. */
const renewed = new WeakMap();

/** A new id, where a form has a field for it: the browser posts that when a button leads somewhere else. */
function renew(form) {
  const field = idField(form);
  if (!field) return;
  field.value = mintId();
  renewed.set(form, field.value);
}

/**
 * The id to post a form under. An event has the time of its id, so it gets one now.
 *
 * Only an id that isn't from here stays: the browser may have posted it by itself, before this file was there, and the page
 * stands until the answer comes. Then this is the same post.
 */
function idFor(form, fields) {
  const id = fields.find(([field]) => field === "id")?.[1];
  return id && id !== renewed.get(form) ? id : mintId();
}

function idField(form) {
  return form.querySelector("input[type=hidden][name=id]");
}

/** The controls of a form that a person fills in. */
function editable(form) {
  return [...form.elements].filter((control) => {
    return control.name && !control.disabled && control.matches(`input${GIVES}, textarea, select`);
  });
}

function hiddenFields(form) {
  const fields = [...form.querySelectorAll("input[type=hidden][name]:not([name=id])")];
  return fields.map((field) => [field.name, field.value]);
}

function has(fields, name, value) {
  return fields.some((field) => field[0] === name && field[1] === value);
}

/** What somebody wrote into a form, as a name for the post. */
function labelOf(controls) {
  const texts = controls.filter((control) => control.matches("textarea, input:not([type=checkbox], [type=radio], [type=password])"));
  return texts.map((control) => control.value.trim()).filter(Boolean).join(" · ");
}

/** Gives a control its earlier value, and uses that up: of several fields of one name, each has its own. */
function fill(control, left) {
  const isChoice = control.type === "checkbox" || control.type === "radio";
  const at = left.findIndex(([name, value]) => name === control.name && (!isChoice || value === control.value));
  if (isChoice) control.checked = at >= 0;
  else if (control.multiple && control.options) {
    for (const option of control.options) option.selected = has(left, control.name, option.value);
    return;
  } else if (at >= 0) control.value = left[at][1];
  if (at >= 0) left.splice(at, 1);
}
