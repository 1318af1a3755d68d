// What the page of to-dos has beyond the common script: a title that was renamed closes its form, and a to-do can be dragged
// to another place. It needs nothing of the common script but its events.

// Behind the others, so that what was posted is in the outbox already.
document.addEventListener("likewise:posted", ({ detail: { form, fields } }) => {
  if (form !== "rename") return;
  const todo = new URLSearchParams(fields).get("todo");
  document.getElementById(`todo-${todo}`)?.querySelector("details")?.removeAttribute("open");
});

let dragged; // the to-do that somebody drags

const list = () => document.getElementById("open");
const todoIn = (target) => (target instanceof Element ? target.closest("#open > li") : null);
const idOf = (item) => item.id.slice("todo-".length);

/** On which side of an item the pointer is. */
function sideOf(item, { clientY }) {
  const { top, height } = item.getBoundingClientRect();
  return clientY < top + height / 2 ? "before" : "after";
}

/** Shows where the dragged to-do would go, or nowhere. */
function mark(item, side) {
  for (const marked of list()?.querySelectorAll("[data-drop]") ?? []) delete marked.dataset.drop;
  if (item) item.dataset.drop = side;
}

document.addEventListener("dragstart", (event) => {
  dragged = todoIn(event.target);
  if (!dragged) return;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", dragged.querySelector("summary").textContent.trim());
});

document.addEventListener("dragover", (event) => {
  const item = todoIn(event.target);
  if (!dragged || !item) return mark();
  event.preventDefault();
  mark(item === dragged ? undefined : item, sideOf(item, event));
});

document.addEventListener("drop", (event) => {
  const item = todoIn(event.target);
  if (!dragged || !item) return;
  event.preventDefault();
  if (item === dragged) return;
  const fields = [["todo", idOf(dragged)], ["side", sideOf(item, event)], ["other", idOf(item)]];
  document.dispatchEvent(new CustomEvent("likewise:post", { detail: { form: "move", fields } }));
});

document.addEventListener("dragend", () => {
  dragged = undefined;
  mark();
});
