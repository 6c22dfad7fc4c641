// The conversation as the page shows it → the same texts with their direction, code, roles and folds.
//
// The page inserts each text as HTML. Only texts without HTML elements are changed, as `curate review push` sends them.

import { renderMarkdown, splitCode } from "./markdown.js";

const RENDERED = "curate-rendered"; // remembered in this browser
const LONG_CHARACTERS = 1500;
const LONG_LINES = 25;
const MANY = 16; // messages; of longer conversations the first and the last are shown
const FIRST = 4;
const LAST = 6;
const KINDS = [
  ["tool", /^(tools|(\d+ )?(tool result|tool|function|observation))$/i],
  ["call", /tool call$/i],
  ["assistant", /^(answer \d+|(\d+ )?(assistant|gpt|model|bot))$/i],
  ["system", /^(\d+ )?system$/i],
  ["user", /^(\d+ )?(user|human)$/i],
];
const IS_CODE = new Set(["tool", "call"]);

const originals = new WeakMap(); // element of a text → the text
const unfolded = new WeakSet(); // conversations that are shown in full

/** Bring all conversations on the page into the chosen form. */
export function showConversations() {
  for (const chat of document.querySelectorAll(".chat__wrapper")) showConversation(chat);
}

function showConversation(chat) {
  const items = [...chat.querySelectorAll(".chat__item")];
  const isNew = items.map((item, place) => showMessage(item, kindOf(items, place))).some(Boolean);
  if (isNew) unfolded.delete(chat);
  if (isNew || chat.curateCount !== items.length) foldMessages(chat, items);
  chat.curateCount = items.length;
  if (!chat.parentElement.querySelector(".curate-tools")) chat.before(tools(chat));
}

/** What kind of speaker a message has. The page shows a role only where it changes. */
function kindOf(items, place) {
  while (place > 0 && !items[place].querySelector(".chat__role")) place -= 1;
  const role = items[place].querySelector(".chat__role")?.textContent.trim() ?? "";
  return KINDS.find(([, pattern]) => pattern.test(role))?.[0] ?? "other";
}

/** Show the text of a message; whether the page has changed it. */
function showMessage(item, kind) {
  if (item.dataset.curateKind !== kind) item.dataset.curateKind = kind;
  const element = item.querySelector(".chat__bubble > span");
  if (!element || element.firstElementChild?.className.startsWith("curate-text")) return false;
  if (element.firstElementChild) return false; // HTML of another program
  originals.set(element, element.textContent);
  showText(element, kind);
  return true;
}

function showText(element, kind) {
  const text = originals.get(element);
  const content = document.createElement("div");
  content.className = "curate-text";
  content.dir = "auto";
  if (IS_CODE.has(kind)) content.append(codeBlock(text));
  else if (localStorage.getItem(RENDERED)) content.append(renderMarkdown(text));
  else content.append(...splitCode(text).map((part) => (part.isCode ? codeBlock(part.text) : part.text)));
  content.classList.toggle("curate-text--rendered", !IS_CODE.has(kind) && Boolean(localStorage.getItem(RENDERED)));
  element.replaceChildren(content);
  if (isLong(text)) foldText(content, text);
}

function codeBlock(text) {
  const code = document.createElement("code");
  code.className = "curate-code";
  code.dir = "ltr";
  code.textContent = text;
  return code;
}

// --- folds ---

function isLong(text) {
  return text.length > LONG_CHARACTERS || text.split("\n", LONG_LINES + 1).length > LONG_LINES;
}

function foldText(content, text) {
  content.classList.add("curate-text--folded");
  const show = button(`Show all ${text.length.toLocaleString("en")} characters`, () => {
    content.classList.remove("curate-text--folded");
    show.remove();
  });
  content.after(show);
}

function foldMessages(chat, items) {
  chat.querySelectorAll(".curate-fold").forEach((fold) => fold.remove());
  const isFolded = items.length > MANY && !unfolded.has(chat);
  const hidden = items.slice(FIRST, items.length - LAST);
  items.forEach((item) => (item.parentElement.hidden = false));
  if (!isFolded) return;
  hidden.forEach((item) => (item.parentElement.hidden = true));
  const fold = button(`Show ${hidden.length} more messages`, () => unfold(chat, items));
  fold.classList.add("curate-fold");
  items[FIRST - 1].parentElement.append(fold);
}

function unfold(chat, items) {
  unfolded.add(chat);
  foldMessages(chat, items);
}

// --- buttons above the conversation ---

function tools(chat) {
  const bar = document.createElement("div");
  bar.className = "curate-tools";
  const raw = button("Raw", () => setRendered(false));
  const rendered = button("Rendered", () => setRendered(true));
  const all = button("Unfold all", () => unfoldAll(chat));
  bar.append(raw, rendered, all);
  markChosen(bar);
  return bar;
}

function setRendered(isRendered) {
  if (isRendered) localStorage.setItem(RENDERED, "1");
  else localStorage.removeItem(RENDERED);
  document.querySelectorAll(".curate-tools").forEach(markChosen);
  for (const item of document.querySelectorAll(".chat__item")) {
    const element = item.querySelector(".chat__bubble > span");
    if (originals.has(element)) showText(element, item.dataset.curateKind);
  }
}

function markChosen(bar) {
  const isRendered = Boolean(localStorage.getItem(RENDERED));
  bar.children[0].setAttribute("aria-pressed", String(!isRendered));
  bar.children[1].setAttribute("aria-pressed", String(isRendered));
}

function unfoldAll(chat) {
  unfold(chat, [...chat.querySelectorAll(".chat__item")]);
  chat.querySelectorAll(".curate-text--folded + .curate-button").forEach((show) => show.click());
}

function button(label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = "curate-button";
  element.textContent = label;
  element.addEventListener("click", action);
  return element;
}
