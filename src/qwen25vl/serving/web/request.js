// A path of the conversation becomes the body of a request.

import { dataUrl } from "./media.js";
import { ancestry } from "./tree.js";

// the options of a request; null where the server's default holds
export const OPTIONS = ["temperature", "top_p", "max_tokens", "seed", "max_pixels"];

export async function requestBody(conversation, parent, settings, model, store) {
  const messages = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  for (const node of ancestry(conversation, parent)) {
    if (node.role === "user") messages.push({ role: "user", content: await content(node, store) });
    else if (node.text) messages.push({ role: "assistant", content: node.text });
  }
  const body = {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  };
  for (const name of OPTIONS) {
    const value = settings[name] ?? null;
    if (value === null) continue;
    if (name === "max_pixels") body.mm_processor_kwargs = { max_pixels: value };
    else body[name] = value;
  }
  return body;
}

// media first, in the order of their thumbnails, then the text
async function content(node, store) {
  if (!node.attachments.length) return node.text;
  const parts = [];
  for (const attachment of node.attachments) parts.push(await partOf(attachment, store));
  if (node.text) parts.push({ type: "text", text: node.text });
  return parts;
}

async function partOf(attachment, store) {
  const blob = await store.readFile(attachment.file);
  if (!blob) throw new Error(`${attachment.name} is no longer stored in this browser.`);
  const url = await dataUrl(blob, attachment.type);
  if (attachment.kind === "image") return { type: "image_url", image_url: { url } };
  if (attachment.kind === "video") return { type: "video_url", video_url: { url } };
  const pages = pageRanges(attachment.pages);
  return { type: "file", file: { file_data: url, filename: attachment.name, pages } };
}

// [1, 2, 3, 7] -> "1-3,7"
export function pageRanges(pages) {
  const ranges = [];
  for (const page of pages) {
    const last = ranges.at(-1);
    if (last && last[1] === page - 1) last[1] = page;
    else ranges.push([page, page]);
  }
  return ranges.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(",");
}

// "1-3, 7" -> [1, 2, 3, 7], or null where it is not a list of pages
export function readRanges(text, numPages) {
  const pages = new Set();
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const found = /^(\d+)(?:\s*[-–]\s*(\d+))?$/.exec(part);
    if (!found) return null;
    const first = Number(found[1]);
    const last = Number(found[2] ?? first);
    if (first < 1 || last > numPages || first > last) return null;
    for (let page = first; page <= last; page += 1) pages.add(page);
  }
  return [...pages].sort((a, b) => a - b);
}
