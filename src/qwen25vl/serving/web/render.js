// Blocks of Markdown become elements, one block at a time.

import { copyText, element, iconButton } from "./dom.js";
import { parseInline } from "./inline.js";
import { linesOf, parseBlocks } from "./markdown.js";

const MAX_SHOWN_ADDRESS = 60;
const LINE_END = /\r\n|\n|\r/g;
const TAGS = { strong: "strong", emphasis: "em", deleted: "del" };

export function renderInline(text) {
  return parseInline(text).map(renderNode);
}

function renderNode(node) {
  switch (node.type) {
    case "text":
      return document.createTextNode(node.text);
    case "break":
      return element("br");
    case "code":
      return element("code", {}, node.text);
    case "math":
      return element("code", { class: "math" }, node.text);
    case "picture":
      return renderLink(node.address, [`picture: ${node.text || "without a name"}`]);
    case "link":
      return renderLink(node.address, node.children.map(renderNode));
    default:
      return element(TAGS[node.type], {}, node.children.map(renderNode));
  }
}

// A link tells where it leads before it is opened: its text is the model's and may say anything.
function renderLink(address, children) {
  const where = { href: address, title: address };
  const link = element("a", { ...where, target: "_blank", rel: "noopener noreferrer" }, children);
  if (link.textContent === address || `${link.textContent}/` === address) return link;
  const isLong = address.length > MAX_SHOWN_ADDRESS;
  const shown = isLong ? `${address.slice(0, MAX_SHOWN_ADDRESS)}…` : address;
  return element("span", {}, link, element("span", { class: "address" }, ` (${shown})`));
}

export function renderBlock(block) {
  switch (block.type) {
    case "heading": // below the page's own headings
      return element(`h${Math.min(6, block.level + 2)}`, {}, renderInline(block.text));
    case "code":
      return renderCode(block);
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, block.blocks.map(renderBlock));
    case "list":
      return renderList(block);
    case "table":
      return renderTable(block);
    default:
      return element("p", {}, renderInline(block.text));
  }
}

function renderCode({ language, text }) {
  const copy = iconButton("copy", "Copy the code", () => copyText(text, copy));
  const name = element("span", {}, language || "text");
  const head = element("div", { class: "code-head" }, name, copy);
  const code = element("pre", { tabindex: "0" }, element("code", {}, text));
  return element("div", { class: "code" }, head, code);
}

function renderList({ ordered, start, items }) {
  const rows = items.map(({ checked, blocks }) => {
    const isTight = blocks.length && blocks[0].type === "paragraph";
    const first = isTight ? renderInline(blocks[0].text) : [];
    const box = checked === null ? [] : [checked ? "☑ " : "☐ "];
    const rest = blocks.slice(isTight ? 1 : 0).map(renderBlock);
    return element("li", { class: checked === null ? null : "task" }, box, first, rest);
  });
  if (!ordered) return element("ul", {}, rows);
  return element("ol", { start: start === 1 ? null : start }, rows);
}

function renderTable({ alignments, header, rows }) {
  const cell = (tag) => (text, column) =>
    element(tag, { class: `align-${alignments[column]}` }, renderInline(text));
  const head = element("thead", {}, element("tr", {}, header.map(cell("th"))));
  const body = element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell("td")))));
  return element("div", { class: "table", tabindex: "0" }, element("table", {}, head, body));
}

// Text that grows: only its last block is rendered again. A block is done once another one follows
// it that starts with a whole line.
export class GrowingMarkdown {
  constructor() {
    this.element = element("div", { class: "markdown" });
    this.rest = ""; // from the first block that is not done
    this.numDone = 0; // children of the element that stay
  }

  append(text) {
    this.rest += text;
    const whole = this.rest.slice(0, this.rest.lastIndexOf("\n") + 1);
    const blocks = parseBlocks(linesOf(whole));
    if (blocks.length > 1) {
      const done = blocks.slice(0, -1).map((one) => renderBlock(one.block));
      this.replace(done);
      this.numDone += done.length;
      this.rest = skipLines(this.rest, blocks.at(-1).start);
    }
    this.replace(parseBlocks(linesOf(this.rest)).map((one) => renderBlock(one.block)));
  }

  replace(elements) {
    while (this.element.childNodes.length > this.numDone) this.element.lastChild.remove();
    this.element.append(...elements);
  }
}

function skipLines(text, count) {
  let at = 0;
  for (let i = 0; i < count; i += 1) {
    LINE_END.lastIndex = at;
    LINE_END.exec(text);
    at = LINE_END.lastIndex;
  }
  return text.slice(at);
}

export function renderMarkdown(text) {
  const growing = new GrowingMarkdown();
  growing.append(text);
  return growing.element;
}
