// One message of the conversation: a question as it was asked, or an answer as it arrives.

import { MarkedPicture } from "./boxes.js";
import { costLine, seconds, stageText } from "./cost.js";
import { announce, copyText, element, icon, iconButton, textButton } from "./dom.js";
import { GrowingMarkdown, renderMarkdown } from "./render.js";
import { describe, preview } from "./thumbnails.js";
import { picturesBefore, siblings } from "./tree.js";
import { urlOf } from "./urls.js";

const MAX_SHOWN_PAGES = 6;
const SILENT_SECONDS = 45; // the server sends a sign of life every 10

// on: {edit(node), regenerate(node), choose(node), open(attachment, page),
//      crop(attachment, page, box, size)}
export function questionView(conversation, node, store, on) {
  const things = node.attachments.flatMap((attachment) => thingsOf(attachment, store, on));
  const copy = iconButton("copy", "Copy the question", () => copyText(node.text, copy));
  const actions = element("div", { class: "actions" }, branchSwitch(conversation, node, on), copy,
    iconButton("edit", "Edit the question", () => on.edit(node)));
  return element("article", { class: "message question", "aria-label": "You" },
    element("h2", { class: "hidden" }, "You"),
    things.length ? element("div", { class: "things" }, things) : null,
    node.text ? element("div", { class: "bubble" }, node.text) : null, actions);
}

// a button for each picture, clip and page
function thingsOf(attachment, store, on) {
  const button = (name, page, caption) => {
    const open = () => on.open(attachment, page);
    const properties = { type: "button", class: "shown", title: name, onclick: open };
    return element("button", { ...properties, "aria-label": `Open ${name}` },
      preview(attachment, store, page), caption);
  };
  if (attachment.kind !== "pdf") return [button(attachment.name, null, null)];
  const shown = attachment.pages.slice(0, MAX_SHOWN_PAGES);
  const buttons = shown.map((page) => {
    const caption = element("span", { class: "pages" }, `page ${page}`);
    return button(`${attachment.name}, page ${page}`, page, caption);
  });
  return [...buttons, element("p", { class: "file-name" }, describe(attachment))];
}

// ‹ 2/3 › where a question was edited or an answer repeated
function branchSwitch(conversation, node, on) {
  const all = siblings(conversation, node);
  if (all.length < 2) return null;
  const index = all.indexOf(node);
  const step = (name, label, to) =>
    iconButton(name, label, () => on.choose(all[to]), { disabled: !all[to] });
  return element("span", { class: "branches" }, step("left", "Earlier version", index - 1),
    element("span", {}, `${index + 1}/${all.length}`), step("right", "Later version", index + 1));
}

export class AnswerView {
  constructor(conversation, node, store, on) {
    Object.assign(this, { conversation, node, store, on, timer: null, frame: null, pending: "" });
    this.body = element("div");
    this.stageLine = element("p", { class: "stage", hidden: true });
    this.foot = element("div", { class: "foot" });
    const heading = element("h2", { class: "hidden" }, "Model");
    const parts = [heading, this.body, this.stageLine, this.foot];
    this.element = element("article", { class: "message answer", "aria-label": "Model" }, parts);
    if (node.state === "running") this.start();
    else this.finish();
  }

  start() {
    this.growing = new GrowingMarkdown();
    this.body.replaceChildren(this.growing.element);
    this.element.setAttribute("aria-busy", "true");
    if (this.node.text) this.growing.append(this.node.text);
    this.setStage({ stage: this.node.text ? "writing" : "sending" });
    this.heard = performance.now();
    this.timer = setInterval(() => this.tick(), 200);
  }

  // shown with the next frame: several pieces may arrive between two
  text(delta) {
    if (this.stage.stage !== "writing") this.setStage({ stage: "writing" });
    this.pending += delta;
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    if (!this.pending) return;
    this.growing.append(this.pending);
    this.pending = "";
    this.on.grown();
  }

  sign() {
    this.heard = performance.now();
  }

  setStage(stage) {
    if (stage.stage !== this.stage?.stage) {
      this.since = performance.now();
      if (stage.stage !== "writing") announce(stageText(stage));
    }
    this.stage = stage;
    this.tick();
  }

  waiting({ seconds: wait, message }) {
    this.retryAt = performance.now() + 1000 * wait;
    this.setStage({ stage: "busy", message });
  }

  tick() {
    const now = performance.now();
    this.stageLine.hidden = false;
    if (this.stage.stage === "busy") {
      const left = Math.max(0, Math.ceil((this.retryAt - now) / 1000));
      this.stageLine.textContent = `${this.stage.message} Trying again in ${left} s.`;
      this.heard = now;
      return;
    }
    const silent = (now - this.heard) / 1000;
    const note = silent > SILENT_SECONDS ? `, nothing heard for ${seconds(silent)}` : "";
    const taken = seconds((now - this.since) / 1000);
    this.stageLine.textContent = `${stageText(this.stage)} · ${taken}${note}`;
  }

  // the same answer is shown elsewhere from now on
  pause() {
    clearInterval(this.timer);
  }

  finish() {
    this.pause();
    if (this.growing) this.flush();
    this.stageLine.hidden = true;
    this.element.removeAttribute("aria-busy");
    const text = this.growing?.element ?? renderMarkdown(this.node.text);
    this.body.replaceChildren(text);
    this.showMarks();
    this.foot.replaceChildren(...[this.errorBox(), this.costAndActions()].filter(Boolean));
  }

  errorBox() {
    const { error } = this.node;
    if (!error) return null;
    const again = textButton("Try again", () => this.on.regenerate(this.node));
    return element("div", { class: "error-box", role: "alert" }, icon("warning"),
      element("span", {}, error.message), again);
  }

  costAndActions() {
    const copy = iconButton("copy", "Copy as Markdown", () => copyText(this.node.text, copy));
    const repeat = () => this.on.regenerate(this.node);
    const actions = element("div", { class: "actions" },
      branchSwitch(this.conversation, this.node, this.on), this.node.text ? copy : null,
      iconButton("repeat", "Answer again", repeat, { class: "regenerate" }));
    return element("div", { class: "under" }, costLine(this.node), actions);
  }

  // one figure for each picture that has marks
  async showMarks() {
    const marks = [...(this.node.boxes ?? []), ...(this.node.points ?? [])];
    if (!marks.length) return;
    const pictures = picturesBefore(this.conversation, this.node);
    const sizes = (this.node.media ?? []).filter((one) => one.kind !== "video");
    const figures = [];
    for (const [index, { attachment, page }] of pictures.entries()) {
      const own = marks.filter((mark) => (mark.picture ?? pictures.length - 1) === index);
      if (!own.length) continue;
      const picture = await this.pictureOf(attachment, page, sizes[index]);
      if (!picture.url) continue;
      const onCrop = (box) => this.on.crop(attachment, page, box, picture);
      const onOpen = () => this.on.open(attachment, page);
      const kinds = own.map(({ label, box, point }) => (box ? { label, box } : { label, point }));
      const figure = new MarkedPicture(picture, kinds, { onCrop, onOpen });
      figures.push(figure.element);
    }
    this.body.append(...figures);
    this.on.grown();
  }

  async pictureOf(attachment, page, media) {
    const known = page ? attachment.sizes[page] : [attachment.width, attachment.height];
    const [height, width] = media?.original_size ?? [known[1], known[0]];
    const name = page ? `${attachment.name}, page ${page}` : attachment.name;
    const url = page ? attachment.thumbnails[page] : await urlOf(attachment, this.store);
    return { url, name, width, height };
  }
}
