// The additions of `curate review serve` to Argilla's page, started when the page is loaded.

import { showConversations } from "./conversation.js";
import { componentOf, findForm, isSingleChoice, optionInputs, questionElements, questionIn } from "./form.js";
import { clear, drop, heldForm, hold, release, watchKeys } from "./keys.js";
import { setNote, showNotesIn } from "./notes.js";
import { watchRequests } from "./requests.js";
import { offerKept, reportNotSaved, reportSaved, reportSaving, stayAfterFailures, watchLeaving } from "./saving.js";

const MOVE_MS = 2000; // after a saved answer, the page stays at the last conversation of a list

let shown = null; // the form set up last

watchRequests({
  saving() {
    reportSaving();
    hold(findForm());
  },
  saved(request) {
    reportSaved(request);
    const isDraft = JSON.parse(request.body)?.status === "draft";
    release(isDraft ? 0 : MOVE_MS);
  },
  notSaved(request) {
    reportNotSaved(request);
    drop();
  },
  counted({ submitted, draft, discarded, total }) {
    const drafts = draft ? `, ${draft} saved as draft` : "";
    setNote("progress", `You: ${submitted} submitted, ${discarded} discarded${drafts}, of ${total} in this set.`);
  },
});
watchKeys();
watchLeaving();
new MutationObserver(refresh).observe(document.documentElement, { childList: true, subtree: true });

/** Add to what the page shows now. Called after every change of the page, also by these additions. */
function refresh() {
  showConversations();
  const form = findForm();
  if (!form || !componentOf(form)) return;
  showNotesIn(form);
  hideSurplusMarks(form);
  if (form === shown) return;
  shown = form;
  stayAfterFailures(form);
  offerKept();
  componentOf(form).$watch(() => missingTitles(form), showMissing, { immediate: true });
  componentOf(form).$watch(() => clearable(form), () => showClearButtons(form), { immediate: true });
  if (heldForm() !== form) release();
  setTimeout(() => scrollToTop(form)); // where the form is below the conversation, the page scrolls to its first question
}

function scrollToTop(form) {
  for (let element = form.parentElement; element; element = element.parentElement) element.scrollTop = 0;
}

// --- what is missing ---

function missingTitles(form) {
  const { id, questions, isDiscarded } = componentOf(form).record;
  if (!id || isDiscarded) return "";
  return questions
    .filter((question) => (question.isRequired ? !question.isAnswered : !question.hasValidValues))
    .map((question) => `“${question.title}”`)
    .join(", ");
}

function showMissing(titles) {
  setNote("missing", titles && `To submit, answer ${titles}`);
}

// --- single choices without an answer ---

function clearable(form) {
  const { questions } = componentOf(form).record;
  return questions.map((question) => isSingleChoice(question) && !question.isRequired && question.isAnswered).join();
}

/** A button at each optional single choice that has an answer: a second click on the answer keeps it. */
function showClearButtons(form) {
  for (const element of questionElements(form)) {
    const question = questionIn(form, element);
    const title = element.querySelector(".title-area");
    let button = title.querySelector(".curate-clear");
    if (!isSingleChoice(question) || question.isRequired) continue;
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.tabIndex = -1;
      button.className = "curate-clear";
      button.textContent = "clear";
      button.addEventListener("click", () => clear(element));
      title.append(button);
    }
    button.hidden = !question.isAnswered;
  }
}

// --- answers that can be marked ---

/** Hide the options `answer 3`, … of a conversation with two answers: the options are those of the whole set. */
function hideSurplusMarks(form) {
  const element = form.querySelector('[aria-label="Question: turns"]');
  const options = [...(element?.querySelectorAll(".input-button") ?? [])];
  if (!options.some((option) => /^answer \d+$/.test(option.querySelector("input").name))) return;
  const count = countAnswers(form);
  const more = element.querySelector(".show-less-button .--more");
  if (more && count > options.length) more.closest("button").click();
  for (const option of options) {
    const number = Number(option.querySelector("input").name.replace("answer ", ""));
    if (option.hidden !== number > count) option.hidden = number > count;
  }
  const header = element.querySelector(".component-header");
  if (header && header.hidden !== count < 15) header.hidden = count < 15;
}

function countAnswers(form) {
  const roles = componentOf(form).record.fields.flatMap(({ content }) =>
    Array.isArray(content) ? content.map(({ role }) => role) : [],
  );
  return new Set(roles.map((role) => /^answer \d+/.exec(role)?.[0]).filter(Boolean)).size;
}
