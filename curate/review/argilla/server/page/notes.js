// Lines between the questions and the buttons: what is missing, what was not saved, what the next key does.

const ORDER = ["progress", "missing", "confirm", "unsaved"];

/** Show a note of one kind, with an optional button `{label, action}`, or remove it if the text is empty. */
export function setNote(kind, text, button = null) {
  const shown = notes.get(kind);
  if (shown?.text === text && !shown.button === !button) return;
  if (text) notes.set(kind, { text, button });
  else notes.delete(kind);
  render();
}

/** Put the notes into a form that appeared. */
export function showNotesIn(form) {
  const footer = form.querySelector(".footer-form");
  if (!footer || area.nextSibling === footer) return;
  form.insertBefore(area, footer);
}

const notes = new Map();
const area = document.createElement("div");
area.className = "curate-notes";
area.setAttribute("aria-live", "polite");

function render() {
  area.replaceChildren(...ORDER.filter((kind) => notes.has(kind)).map((kind) => line(kind, notes.get(kind))));
}

function line(kind, { text, button }) {
  const element = document.createElement("p");
  element.className = `curate-note curate-note--${kind}`;
  element.append(text);
  if (button) {
    const control = document.createElement("button");
    control.type = "button";
    control.textContent = button.label;
    control.addEventListener("click", button.action);
    element.append(" ", control);
  }
  return element;
}
