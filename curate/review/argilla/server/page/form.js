// The form of the open conversation: its questions, and what is known about each of them.
//
// Argilla's page is built with Vue 2, which keeps the component of an element in `element.__vue__`. The component of
// the form has the record and the methods `onSubmit`, `onDiscard`, `onSaveDraft` and `updateQuestionAutofocus`.

const QUESTION = '[aria-label^="Question: "]';

/** The form on the page, or null. */
export function findForm() {
  return document.querySelector("form.questions-form");
}

/** The component of a form. */
export function componentOf(form) {
  return form.__vue__;
}

/** The component above the form that saves answers, and then tells its parent to show the next conversation. */
export function saverOf(form) {
  let component = componentOf(form);
  while (!component.$parent.$options.methods?.goToNext) component = component.$parent;
  return component;
}

/** Whether the page is loading the next conversation. */
export function isMoving(form) {
  return saverOf(form).$parent.fetching;
}

/** The elements of the form's questions, in order. */
export function questionElements(form) {
  return [...form.querySelectorAll(QUESTION)];
}

/** The element of the question around an element, or null. */
export function questionElement(element) {
  return element?.closest?.(QUESTION) ?? null;
}

/** The question shown in an element, with `name`, `title`, `isRequired`, `isAnswered` and its type. */
export function questionIn(form, element) {
  const name = element.getAttribute("aria-label").slice("Question: ".length);
  return componentOf(form).record.questions.find((question) => question.name === name);
}

/** Whether a question has at most one answer. */
export function isSingleChoice(question) {
  return question.isRatingType || question.isSingleLabelType;
}

/** The inputs of a question's options that are visible. */
export function optionInputs(element) {
  return [...element.querySelectorAll(".input-button:not([hidden]) input[type=checkbox]")];
}

/** The key of an option: the number shown on it. */
export function optionKey(input) {
  return input.dataset.keyboard ?? input.name;
}

/** Whether an element receives typed text. */
export function isTextInput(element) {
  return element.isContentEditable || element.matches?.("textarea, select, input:not([type=checkbox])");
}

/** Focus a question, as the page does after an answer. */
export function focusQuestion(form, index) {
  componentOf(form).updateQuestionAutofocus(index);
}
