// An answer that was not saved stays in the form and is reported; the page does not move on.

import { componentOf, findForm, saverOf } from "./form.js";
import { setNote } from "./notes.js";

const KEPT = "curate-unsaved"; // in the session of this tab, in case that the page is reloaded or signs out
const TOKEN = "auth._token.local"; // where the page keeps it
const SLOW_MS = 5000;
const ACTIONS = { submitted: "onSubmit", discarded: "onDiscard", draft: "onSaveDraft" };
const MOVES = ["on-submit-responses", "on-discard-responses"];

let failed = null; // the form whose latest request failed
let slow = 0;

/** A request to save an answer started. */
export function reportSaving() {
  failed = null;
  clearTimeout(slow);
  slow = setTimeout(() => setNote("unsaved", "Not saved yet: waiting for the server."), SLOW_MS);
}

/** The request succeeded. */
export function reportSaved(request) {
  clearTimeout(slow);
  const kept = readKept();
  if (kept && kept.path !== request.path) return showKept(kept);
  sessionStorage.removeItem(KEPT);
  setNote("unsaved", "");
}

/** The request failed: keep its content, and offer to repeat it. */
export function reportNotSaved(request) {
  clearTimeout(slow);
  failed = findForm();
  sessionStorage.setItem(KEPT, JSON.stringify({ ...request, account: account() }));
  showKept(request);
}

/** Prevent the page from moving on after a failed request. The page ignores errors of these requests. */
export function stayAfterFailures(form) {
  const saver = saverOf(form);
  if (saver.curateStays) return;
  saver.curateStays = true;
  const emit = saver.$emit;
  saver.$emit = function (event, ...values) {
    return failed && MOVES.includes(event) ? this : emit.call(this, event, ...values);
  };
}

/** Report an answer that was not saved before the page was loaded. */
export function offerKept() {
  const kept = readKept();
  if (kept) showKept(kept);
}

/** Ask before the page is left with an answer that is not saved. */
export function watchLeaving() {
  window.addEventListener("beforeunload", (event) => {
    const form = findForm();
    if (readKept() || (form && componentOf(form).record.isModified)) event.preventDefault();
  });
}

/** The request that was not saved, or null; that of another account is not shown to this one. */
function readKept() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT));
  return kept?.account === account() ? kept : null;
}

/** The id of the account that is signed in, from its token (a JSON Web Token); null without one. */
function account() {
  const claims = localStorage.getItem(TOKEN)?.split(".")[1];
  return claims ? JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/"))).identity : null;
}

function showKept(request) {
  const label = request.status === 409 ? "Reload" : "Try again";
  setNote("unsaved", `Not saved: ${reason(request.status)}`, { label, action: () => repeat(request) });
}

function reason(status) {
  if (status === 0) return "the server cannot be reached. Your answer is kept in this page.";
  if (status === 401) return "you are signed out. Your answer is kept until this tab is closed.";
  if (status === 409) return "the server has another answer of yours to this conversation.";
  return `the server answered ${status}. Your answer is kept in this page.`;
}

function repeat(request) {
  if (request.status === 409) {
    sessionStorage.removeItem(KEPT);
    return location.reload();
  }
  const action = ACTIONS[JSON.parse(request.body)?.status];
  const form = findForm();
  if (action && form && form === failed) componentOf(form)[action]();
  else resend(request);
}

/** Send a kept request again, whose form is no longer open. */
function resend(request) {
  const xhr = new XMLHttpRequest();
  xhr.open(request.method, request.path);
  xhr.setRequestHeader("Content-Type", "application/json");
  xhr.setRequestHeader("Authorization", localStorage.getItem(TOKEN));
  xhr.send(request.body);
}
