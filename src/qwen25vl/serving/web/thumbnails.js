// Attachments as small pictures: in a question, and in the field where one is written.

import { element, icon, iconButton } from "./dom.js";
import { visualTokens } from "./media.js";
import { pageRanges } from "./request.js";
import { urlOf } from "./urls.js";

// what an attachment, or one page of it, shows of itself
export function preview(attachment, store, page = null) {
  if (attachment.kind === "pdf") {
    const image = attachment.thumbnails[page ?? attachment.pages[0]];
    return image ? element("img", { src: image, alt: "" }) : icon("document");
  }
  const isClip = attachment.kind === "video" && attachment.type !== "image/gif";
  const shown = isClip
    ? element("video", { muted: true, playsinline: true, preload: "metadata" })
    : element("img", { alt: "", draggable: "false" });
  urlOf(attachment, store).then((url) => {
    if (url) shown.src = url;
    else shown.replaceWith(icon("picture"));
  });
  return shown;
}

export function describe(attachment) {
  if (attachment.kind === "pdf") {
    const pages = attachment.pages.length === 1 ? "page" : "pages";
    return `${attachment.name}, ${pages} ${pageRanges(attachment.pages)} of ${attachment.numPages}`;
  }
  return attachment.name;
}

// visual tokens before anything is sent, or null where they are not known
export function estimate(attachment, budget) {
  if (!budget || attachment.kind === "video") return null;
  const sizes = attachment.kind === "pdf"
    ? attachment.pages.map((page) => attachment.sizes[page])
    : [[attachment.width, attachment.height]];
  return sizes.reduce((sum, [width, height]) => sum + visualTokens(width, height, budget), 0);
}

function costOf(attachment, budget) {
  const tokens = estimate(attachment, budget);
  if (tokens !== null) return `${tokens.toLocaleString("en")} tokens`;
  if (attachment.kind !== "video") return "";
  return attachment.seconds ? `clip, ${attachment.seconds.toFixed(1)} s` : "clip";
}

// The attachments of the question that is being written: they can be opened, moved and removed.
// change(items): the new list; open(item); budget(): {min_pixels, max_pixels} or null
export function editableList(list, items, store, { change, open, budget }) {
  const move = (from, to) => {
    if (to < 0 || to >= items.length || from === to) return;
    const moved = [...items];
    moved.splice(to, 0, ...moved.splice(from, 1));
    change(moved);
    list.children[to]?.querySelector(".thumbnail").focus();
  };
  list.replaceChildren(...items.map((item, index) => {
    const name = describe(item);
    const remove = () => change(items.filter((one) => one !== item));
    const label = `${name}, ${index + 1} of ${items.length}. Open`;
    const properties = { type: "button", class: "thumbnail", title: name, "aria-label": label };
    const main = element("button", { ...properties, onclick: () => open(item) },
      preview(item, store));
    main.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) move(index, index + step);
      else if (["Delete", "Backspace"].includes(event.key)) remove();
    });
    const chip = element("li", { class: "chip", draggable: "true" }, main,
      element("span", { class: "chip-cost" }, costOf(item, budget())),
      iconButton("close", `Remove ${item.name}`, remove, { class: "chip-remove" }),
      items.length > 1 ? moveButtons(index, items, move) : null);
    dragToMove(chip, index, move);
    return chip;
  }));
}

function moveButtons(index, items, move) {
  const { name } = items[index];
  const earlier = iconButton("left", `Move ${name} forward`, () => move(index, index - 1),
    { disabled: index === 0 });
  const later = iconButton("right", `Move ${name} back`, () => move(index, index + 1),
    { disabled: index === items.length - 1 });
  return element("span", { class: "chip-move" }, earlier, later);
}

const DRAGGED = "application/x-qwen25vl-position";

function dragToMove(chip, index, move) {
  chip.addEventListener("dragstart", (event) => event.dataTransfer.setData(DRAGGED, String(index)));
  chip.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes(DRAGGED)) event.preventDefault();
  });
  chip.addEventListener("drop", (event) => {
    const from = event.dataTransfer.getData(DRAGGED);
    if (from === "") return;
    event.preventDefault();
    event.stopPropagation();
    move(Number(from), index);
  });
}
