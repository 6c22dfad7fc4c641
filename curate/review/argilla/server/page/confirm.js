// Actions that lose an answer are done when they are requested twice: discard, and leaving a changed conversation.

import { setNote } from "./notes.js";

const SECONDS = 8;
let armed = null;
let timer = 0;

/** Whether this action was requested before; otherwise the note is shown and the next request counts. */
export function isConfirmed(action, note) {
  const confirmed = armed === action;
  cancel();
  if (!confirmed) {
    armed = action;
    timer = setTimeout(cancel, SECONDS * 1000);
    setNote("confirm", note);
  }
  return confirmed;
}

/** Forget the request, because something else was done. */
export function cancel() {
  clearTimeout(timer);
  armed = null;
  setNote("confirm", "");
}
