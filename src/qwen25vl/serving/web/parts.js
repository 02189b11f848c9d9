// Attachments opened in full size, and parts of them for the next question: of a picture or a page
// a rectangle, of a clip a frame.

import { roundBox } from "./boxes.js";
import { playClip } from "./clip.js";
import { crop } from "./media.js";
import { readPage } from "./pdf.js";
import { urlOf } from "./urls.js";
import { viewPicture } from "./viewer.js";

const stem = (name) => name.replace(/\.\w+$/, "");

async function blobOf(attachment, store) {
  const blob = await store.readFile(attachment.file);
  if (!blob) throw new Error(`${attachment.name} is no longer stored in this browser.`);
  return blob;
}

// the part that the person chose, {blob, name}, or null
export async function openAttachment(attachment, page, store) {
  const blob = await blobOf(attachment, store);
  if (attachment.kind === "video") {
    const frame = await playClip(attachment, await urlOf(attachment, store));
    return frame && { blob: frame, name: `${stem(attachment.name)} frame.jpg` };
  }
  if (attachment.kind === "pdf") return openPage(attachment, page ?? attachment.pages[0], blob);
  const { name, width, height } = attachment;
  const url = await urlOf(attachment, store);
  const box = await viewPicture({ url, name, width, height });
  return box && part(blob, box, name);
}

async function openPage(attachment, page, blob) {
  const { picture, width, height } = await readPage(blob, page);
  const name = `${attachment.name}, page ${page}`;
  const url = URL.createObjectURL(picture);
  try {
    const box = await viewPicture({ url, name, width, height });
    return box && (await part(picture, box, `${stem(attachment.name)} page ${page}`));
  } finally {
    URL.revokeObjectURL(url);
  }
}

// a box of an answer as a picture; size: of the picture in whose pixels the box is
export async function cutBox(attachment, page, box, size, store) {
  const blob = await blobOf(attachment, store);
  if (!page) return part(blob, box, attachment.name);
  const { picture, width, height } = await readPage(blob, page);
  const [x, y] = [width / size.width, height / size.height];
  const scaled = box.map((value, index) => value * (index % 2 ? y : x));
  const name = `${stem(attachment.name)} page ${page}`;
  return part(picture, roundBox(scaled, { width, height }), name);
}

async function part(blob, box, name) {
  return { blob: await crop(blob, box), name: `${stem(name)} ${box.join(",")}.png` };
}
