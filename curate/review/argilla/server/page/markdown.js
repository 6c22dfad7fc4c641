// Markdown → elements for display. Text is only ever inserted as text, so nothing in it can run: HTML is shown as it is
// written, links lead to http, https and mailto addresses only, and images are named instead of loaded.

const MAX_DEPTH = 8; // quotes and lists within each other
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;
const MATH = [["$$", "$$"], ["\\[", "\\]"]];
// Every alternative is bounded, so that the time is proportional to the length.
const INLINE = new RegExp(
  [
    "(?<!`)(?<ticks>`+)(?!`)(?<code>.{1,500}?)(?<!`)\\k<ticks>(?!`)",
    "(?<math>\\$(?=\\S)[^$\\n]{1,200}[^\\s$]\\$(?!\\d)|\\\\\\(.{1,200}?\\\\\\)|\\\\\\[.{1,200}?\\\\\\])",
    "\\\\(?<escaped>[!-/:-@[-`{-~])",
    "!\\[(?<alt>[^\\]\\n]{0,200})\\]\\((?<image>[^)\\s]{0,2000})[^)\\n]{0,200}\\)",
    "\\[(?<label>[^\\]\\n]{1,300})\\]\\((?<target>[^)\\s]{1,2000})\\)",
    "(?<address>https?://[^\\s<>\"')\\]]{0,2000}[^\\s<>\"')\\].,;:!?*_])",
    "\\*\\*(?=\\S)(?<strong>.{1,500}?\\S?)\\*\\*|__(?=\\S)(?<strong2>.{1,500}?\\S?)__(?!\\w)",
    "\\*(?=[^\\s*])(?<em>.{0,500}?[^\\s*])\\*(?!\\*)|(?<![\\w_])_(?=[^\\s_])(?<em2>.{0,500}?[^\\s_])_(?!\\w)",
    "~~(?=\\S)(?<del>.{1,500}?)~~",
  ].join("|"),
  "su",
);

/** The elements of a text. */
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

/** The parts of a text outside and inside of ``` fences, which together are the text. */
export function splitCode(text) {
  const parts = [{ isCode: false, text: "" }];
  let fence = null;
  for (const line of text.split(/(?<=\n)/)) {
    const mark = FENCE.exec(line)?.[1];
    const opens = !fence && mark;
    const closes = fence && closesFence(line, fence);
    if (opens) parts.push({ isCode: true, text: "" });
    parts.at(-1).text += line;
    if (closes) parts.push({ isCode: false, text: "" });
    fence = opens ? mark : closes ? null : fence;
  }
  return parts.filter((part) => part.text);
}

function closesFence(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

// --- blocks ---

function blocks(lines, depth) {
  const elements = [];
  let place = 0;
  while (place < lines.length) {
    const [element, next] = block(lines, place, depth);
    if (element) elements.push(element);
    place = next;
  }
  return elements;
}

/** The element of the block at a line, and the line after it. */
function block(lines, place, depth) {
  const line = lines[place];
  if (!line.trim()) return [null, place + 1];
  const fence = FENCE.exec(line);
  if (fence) return codeBlock(lines, place, fence);
  const math = MATH.find(([start]) => line.trimStart().startsWith(start));
  if (math) return mathBlock(lines, place, math);
  const heading = HEADING.exec(line);
  if (heading) return [element(`h${heading[1].length}`, inline(heading[2], 0)), place + 1];
  if (RULE.test(line)) return [element("hr", []), place + 1];
  if (isTable(lines, place)) return table(lines, place);
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, place, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, place, depth);
  return paragraph(lines, place);
}

function startsBlock(lines, place) {
  const line = lines[place];
  return !line.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((each) => each.test(line)) || isTable(lines, place);
}

function paragraph(lines, place) {
  let end = place + 1;
  while (end < lines.length && !startsBlock(lines, end)) end += 1;
  return [element("p", inline(lines.slice(place, end).join("\n"), 0)), end];
}

function codeBlock(lines, place, [, fence]) {
  let end = place + 1;
  while (end < lines.length && !closesFence(lines[end], fence)) end += 1;
  const content = code(lines.slice(place + 1, end).join("\n"));
  content.dataset.language = lines[place].trim().slice(fence.length).trim();
  return [content, end + 1];
}

function code(text) {
  const content = element("code", [text]);
  content.className = "curate-code";
  content.dir = "ltr";
  return content;
}

/** A formula, as it is written. */
function mathBlock(lines, place, [start, stop]) {
  let end = place;
  const first = lines[place].trimStart().slice(start.length);
  if (!first.includes(stop)) do end += 1; while (end < lines.length && !lines[end].includes(stop));
  return [code(lines.slice(place, end + 1).join("\n")), end + 1];
}

function quote(lines, place, depth) {
  let end = place;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const content = lines.slice(place, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", blocks(content, depth + 1)), end];
}

function list(lines, place, depth) {
  const [, indent, mark] = ITEM.exec(lines[place]);
  const isOrdered = /\d/.test(mark);
  const whole = element(isOrdered ? "ol" : "ul", []);
  if (isOrdered) whole.start = parseInt(mark, 10);
  while (place < lines.length) {
    const item = ITEM.exec(lines[place]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== isOrdered) break;
    const end = itemEnd(lines, place + 1, indent.length);
    const content = [lines[place].slice(item[0].length), ...dedent(lines.slice(place + 1, end))];
    whole.append(element("li", blocks(content, depth + 1)));
    place = end;
  }
  return [whole, place];
}

/** The line after an item: it continues on deeper lines, and on lines that start no other block. */
function itemEnd(lines, place, indent) {
  while (place < lines.length) {
    const line = lines[place];
    const isDeeper = line.search(/\S/) > indent;
    const isBlank = !line.trim();
    const continuesAfterBlank = isBlank && (lines[place + 1] ?? "").search(/\S/) > indent;
    if (!(isBlank ? continuesAfterBlank : isDeeper || !startsBlock(lines, place))) break;
    place += 1;
  }
  return place;
}

function dedent(lines) {
  const depths = lines.filter((line) => line.trim()).map((line) => line.search(/\S/));
  const depth = depths.reduce((least, each) => Math.min(least, each), Infinity);
  return lines.map((line) => line.slice(depth));
}

function isTable(lines, place) {
  const next = lines[place + 1];
  return lines[place].includes("|") && next !== undefined && next.includes("-") && DELIMITERS.test(next) &&
    cells(lines[place]).length === cells(next).length;
}

function table(lines, place) {
  const sides = cells(lines[place + 1]).map((cell) => (cell.endsWith(":") ? (cell[0] === ":" ? "center" : "end") : ""));
  const row = (line, tag) => element("tr", cells(line).map((cell, column) => {
    const content = element(tag, inline(cell, 0));
    content.style.textAlign = sides[column] ?? "";
    return content;
  }));
  let end = place + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const body = lines.slice(place + 2, end).map((line) => row(line, "td"));
  return [element("table", [row(lines[place], "th"), ...body]), end];
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// --- within a line ---

function inline(text, depth) {
  const parts = [];
  while (text && depth < MAX_DEPTH) {
    const match = INLINE.exec(text);
    if (!match) break;
    parts.push(text.slice(0, match.index), inlinePart(match, depth));
    text = text.slice(match.index + match[0].length);
  }
  return [...parts, text];
}

function inlinePart({ 0: whole, groups }, depth) {
  if (groups.escaped) return groups.escaped;
  if (groups.code) return inlineCode(groups.code);
  if (groups.math) return inlineCode(whole);
  if (groups.image !== undefined) return imagePlaceholder(groups.alt, groups.image);
  if (groups.target) return link(inline(groups.label, depth + 1), groups.target) ?? whole;
  if (groups.address) return link([whole], whole) ?? whole;
  const strong = groups.strong ?? groups.strong2;
  if (strong) return element("strong", inline(strong, depth + 1));
  const em = groups.em ?? groups.em2;
  if (em) return element("em", inline(em, depth + 1));
  return element("del", inline(groups.del, depth + 1));
}

function inlineCode(text) {
  const content = element("code", [text]);
  content.dir = "ltr";
  return content;
}

function imagePlaceholder(alt, address) {
  const host = URL.canParse(address) ? new URL(address).host : "";
  const content = element("span", [`Image: ${alt || "without a description"}${host && ` (${host})`}, not loaded`]);
  content.className = "curate-image";
  return content;
}

/** A link that names its host, or null if the address is not a web or mail address. */
function link(label, address) {
  if (!URL.canParse(address)) return null;
  const { protocol, host, href } = new URL(address);
  if (!["http:", "https:", "mailto:"].includes(protocol)) return null;
  const content = element("a", label);
  Object.assign(content, { href, title: href, target: "_blank", rel: "noopener noreferrer" });
  if (!content.textContent.includes(host)) content.append(` (${host})`);
  return content;
}

function element(tag, children) {
  const content = document.createElement(tag);
  content.append(...children);
  return content;
}
