// Choosing the pages of a PDF. The server draws the small pictures of them.

import { readPdf } from "./api.js";
import { byId, element, icon, openDialog } from "./dom.js";
import { blobOfUrl, FileError } from "./media.js";
import { pageRanges, readRanges } from "./request.js";
import { randomId } from "./tree.js";

const PIXELS_PER_POINT = 2; // as the server draws pages for the model
const CHOSEN_AT_FIRST = 4; // a longer document starts with its first page only

// the attachment, or null if the person cancels; chosen: the pages of an attachment that is changed
export async function choosePages(blob, name, chosen = null) {
  const { num_pages: numPages, pages } = await readPdf(blob);
  if (!pages?.length) throw new FileError(`${name} has no pages.`);
  const all = pages.map((page) => page.number);
  const selection = new Set(chosen ?? (all.length <= CHOSEN_AT_FIRST ? all : [all[0]]));
  if (all.length > 1 && !(await ask(name, pages, numPages, selection))) return null;
  const used = pages.filter((page) => selection.has(page.number));
  const withImage = used.filter((page) => page.image);
  const thumbnails = Object.fromEntries(withImage.map((page) => [page.number, page.image]));
  const drawn = withImage.reduce((sum, page) => sum + page.image.length, 0);
  const pixels = ({ number, width, height }) =>
    [number, [width, height].map((side) => Math.max(1, Math.round(side * PIXELS_PER_POINT)))];
  return {
    id: randomId(), file: randomId(), kind: "pdf", name, type: "application/pdf",
    bytes: blob.size + drawn, numPages, pages: used.map((page) => page.number), thumbnails,
    sizes: Object.fromEntries(used.map(pixels)),
  };
}

// a page as a picture that can be read, and its size
export async function readPage(blob, number) {
  const { pages } = await readPdf(blob, number);
  const picture = blobOfUrl(pages[0].image);
  const bitmap = await createImageBitmap(picture);
  const { width, height } = bitmap;
  bitmap.close();
  return { picture, width, height };
}

async function ask(name, pages, numPages, selection) {
  const field = byId("pdf-range");
  const list = byId("pdf-pages");
  byId("pdf-title").textContent = `Pages of ${name}`;
  let last = 0;
  const buttons = pages.map((page, index) => {
    const label = element("span", {}, String(page.number));
    const image = page.image
      ? element("img", { src: page.image, alt: "", loading: "lazy" })
      : element("span", { class: "undrawn" }, icon("document"));
    const properties = { type: "button", class: "page-choice" };
    const name = { "aria-label": `Page ${page.number}` };
    const button = element("button", { ...properties, ...name }, image, label);
    button.addEventListener("click", (event) => {
      toggle(pages, selection, event.shiftKey ? last : index, index);
      last = index;
      show();
    });
    return button;
  });
  const show = (isTyped = false) => {
    const chosen = pages.map((page) => page.number).filter((number) => selection.has(number));
    buttons.forEach((button, index) =>
      button.setAttribute("aria-pressed", String(selection.has(pages[index].number))));
    if (!isTyped) field.value = pageRanges(chosen);
    byId("pdf-count").textContent = `${chosen.length} of ${numPages} chosen`;
    byId("pdf-add").disabled = chosen.length === 0;
  };
  const choose = (numbers, isTyped) => {
    selection.clear();
    for (const number of numbers) selection.add(number);
    show(isTyped);
  };
  field.oninput = () => {
    const typed = readRanges(field.value, numPages);
    field.setAttribute("aria-invalid", String(typed === null));
    if (typed) choose(typed, true);
  };
  byId("pdf-all").onclick = () => choose(pages.map((page) => page.number));
  byId("pdf-none").onclick = () => choose([]);
  list.replaceChildren(...buttons);
  show();
  return (await openDialog("pdf-dialog")) === "yes";
}

// one page, or all from the one clicked before to this one, which all become what this one becomes
function toggle(pages, selection, from, to) {
  const isChosen = !selection.has(pages[to].number);
  for (let i = Math.min(from, to); i <= Math.max(from, to); i += 1) {
    if (isChosen) selection.add(pages[i].number);
    else selection.delete(pages[i].number);
  }
}
