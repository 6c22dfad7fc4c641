// Key presses → answers. A key always has the same effect: the digit of a selected option keeps it, digits reach the
// question that follows the last answered one, and keys typed while an answer is being saved wait for the next form.

import { cancel, isConfirmed } from "./confirm.js";
import {
  componentOf,
  findForm,
  focusQuestion,
  isMoving,
  isSingleChoice,
  isTextInput,
  optionInputs,
  optionKey,
  questionElement,
  questionElements,
  questionIn,
} from "./form.js";
import { setNote } from "./notes.js";

const AMBIGUOUS_MS = 700; // how long `1` waits for another digit if there are options 1 and 10
const RETRY_MS = 100;
const LEAVE = "Your changes here are not saved. Press it again to leave without them; Ctrl+S saves a draft.";
const DISCARD = "Press Discard or ⌫ again to discard this conversation.";

let last = null; // the question that was focused last
let typed = { element: null, text: "", timer: 0 }; // digits of an option that could have more digits
let held = null; // the form whose answer is being saved
let waiting = []; // keys typed since then
let isAnswering = false; // whether a key since the latest Enter is among them
let releaseTimer = 0;

/** Handle the keys and clicks of the whole page, before the page does. */
export function watchKeys() {
  window.addEventListener("keydown", onKey, true);
  window.addEventListener("click", onClick, true);
  document.addEventListener("focusin", (event) => (last = questionElement(event.target) ?? last));
  // The page submits and discards wherever Enter and Backspace are pressed, even in a search box or on a button.
  document.body.addEventListener("keydown", (event) => {
    const isControl = isTextInput(event.target) || event.target.closest("button, a");
    if (isControl && ["Enter", "Backspace"].includes(event.key)) event.stopPropagation();
  });
}

/** Keep keys back until they are released, because the answers of `form` are being saved. */
export function hold(form) {
  clearTimeout(releaseTimer);
  held = form;
}

/** Type the keys that were kept back, `after` milliseconds. */
export function release(after = 0) {
  clearTimeout(releaseTimer);
  releaseTimer = setTimeout(typeNext, after); // not at once: the page first moves the focus
}

/** Forget the keys that were kept back: they were meant for another conversation. */
export function drop() {
  waiting = [];
  release();
}

function typeNext() {
  const form = findForm();
  if (form && componentOf(form).isSaving) return; // another answer: it is released when that one is saved
  if (form && isMoving(form)) return release(RETRY_MS);
  if (!form || !waiting.length) {
    held = null;
    waiting = [];
    isAnswering = false;
    return;
  }
  type(form, waiting.shift());
  release();
}

/** The form whose keys are kept back, or null. */
export function heldForm() {
  return held;
}

/** Remove the answer to a question with one choice. */
export function clear(element) {
  for (const input of optionInputs(element)) {
    if (input.checked) withUnselecting(() => input.click());
  }
}

function onKey(event) {
  const form = findForm();
  if (!form || event.altKey || isModified(event) || isTextInput(event.target)) return;
  if (!isInFormOrText(event.target)) return;
  if (!componentOf(form).record.id) return stopSaving(event);
  if (held) return keepBack(event);
  if (handle(form, event.key, event.repeat)) stop(event);
}

/** At the end of a list, the page shows an empty form and still submits it by Enter. */
function stopSaving(event) {
  if (event.key === "Enter" || event.key === "Backspace") stop(event);
}

function isModified(event) {
  return event.ctrlKey || event.metaKey || event.shiftKey;
}

function isInFormOrText(target) {
  const outside = target.closest("button, a, [role=dialog], .dropdown, header");
  return !outside || outside.closest(".questions-form") !== null;
}

function stop(event) {
  event.preventDefault();
  event.stopImmediatePropagation();
}

/** Keep a key for the next form. A second Enter is dropped: it would submit a conversation that nobody has seen. */
function keepBack(event) {
  if (isDigit(event.key) || event.key === "ArrowDown" || event.key === "ArrowUp") {
    waiting.push(event.key);
    isAnswering = true;
  } else if (event.key === "Enter" && isAnswering && !event.repeat) {
    waiting.push(event.key);
    isAnswering = false;
  }
  stop(event);
}

/** Type a kept key. The page's own handler is not involved, so Enter and the arrows are done here. */
function type(form, key) {
  if (handle(form, key, false)) return;
  const component = componentOf(form);
  if (key === "Enter") component.onSubmit();
  const step = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (step) focusQuestion(form, (component.autofocusPosition ?? 0) + step);
}

/** Handle a key; whether the page must not handle it as well. */
function handle(form, key, isRepeated) {
  if (isDigit(key)) return typeDigit(form, key);
  commit(form);
  if (key === "Backspace") return isRepeated || !mayDiscard(form);
  if (key === "Enter") return isRepeated || (cancel(), false);
  if (key === "ArrowLeft" || key === "ArrowRight") return !mayLeave(form);
  cancel();
  if (key === " ") return keepFocusedOption(form);
  if (key === "Delete") return clearCurrent(form);
  if (key.length === 1) startEditing(form);
  return false;
}

function isDigit(key) {
  return key >= "0" && key <= "9" && key.length === 1;
}

// --- options ---

function typeDigit(form, digit) {
  cancel();
  const element = currentQuestion(form);
  if (!element.contains(document.activeElement)) element.querySelector("input, [tabindex]").focus();
  const question = questionIn(form, element);
  if (question.isTextType) return startEditing(form);
  if (!isSingleChoice(question) && !question.isMultiLabelType) return false;
  if (typed.element !== element) commit(form);
  const inputs = optionInputs(element);
  const text = typed.text + digit;
  const matches = inputs.filter((input) => optionKey(input).startsWith(text));
  if (!matches.length && typed.text) return commit(form), typeDigit(form, digit);
  clearTimeout(typed.timer);
  typed = { element, text, timer: 0 };
  setNote("confirm", matches.length ? "" : `There is no option ${digit} here.`);
  if (matches.length > 1) typed.timer = setTimeout(() => commit(form), AMBIGUOUS_MS);
  else commit(form);
  return true;
}

/** Select the option with the digits typed so far. */
function commit(form) {
  const { element, text, timer } = typed;
  clearTimeout(timer);
  typed = { element: null, text: "", timer: 0 };
  const input = element && optionInputs(element).find((each) => optionKey(each) === text);
  if (input) select(form, element, input);
}

function select(form, element, input) {
  if (!isSingleChoice(questionIn(form, element))) return input.click();
  if (!input.checked) return input.click(); // the page moves on to the next question
  focusQuestion(form, questionElements(form).indexOf(element) + 1);
}

/** The question that receives a digit: the focused one, or the last one if the focus left the form. */
function currentQuestion(form) {
  const focused = questionElement(document.activeElement);
  if (focused && form.contains(focused)) return focused;
  return last && form.contains(last) ? last : questionElements(form)[0];
}

/** Space selects the focused option as its digit does. */
function keepFocusedOption(form) {
  const element = questionElement(document.activeElement);
  if (!element || !document.activeElement.matches("input[type=checkbox]")) return false;
  select(form, element, document.activeElement);
  return true;
}

function clearCurrent(form) {
  const element = questionElement(document.activeElement);
  if (!element || !isSingleChoice(questionIn(form, element))) return false;
  clear(element);
  return true;
}

/** A letter typed on a text question that is focused but not open belongs to its text. */
function startEditing(form) {
  const element = questionElement(document.activeElement);
  const editor = element && questionIn(form, element).isTextType && element.querySelector("[contenteditable]");
  if (!editor) return false;
  editor.focus();
  getSelection().selectAllChildren(editor);
  getSelection().collapseToEnd();
  return false; // the browser types the character
}

// --- clicks ---

let mayUnselect = false;

function withUnselecting(action) {
  mayUnselect = true;
  action();
  mayUnselect = false;
}

function onClick(event) {
  const form = findForm();
  if (!form) return;
  commit(form);
  const target = event.target;
  if (target.closest(".button--discard")) return mayDiscard(form) || stop(event);
  if (target.closest(".pagination__button, .pagination")) return mayLeave(form) || stop(event);
  if (target.matches("input[type=checkbox]") && form.contains(target)) keepSelected(form, target, event);
}

/** Cancel a click on the selected option of a single choice. The browser has changed the input already. */
function keepSelected(form, input, event) {
  if (input.checked || mayUnselect) return;
  const element = questionElement(input);
  if (element && isSingleChoice(questionIn(form, element))) stop(event);
}

// --- actions that lose an answer ---

function mayDiscard(form) {
  const component = componentOf(form);
  if (component.record.isDiscarded || component.isSaving) return true; // the page ignores it
  return isConfirmed("discard", DISCARD);
}

function mayLeave(form) {
  return !componentOf(form).record.isModified || isConfirmed("leave", LEAVE);
}
