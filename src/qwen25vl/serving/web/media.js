// Files that people add become attachments.
//
//   {id, file, kind: "image" | "video" | "pdf", name, type, bytes}
//   a picture has {width, height, isReduced?}, a clip {seconds?}, a document
//   {pages: [number], numPages, sizes: {page: [width, height]}, thumbnails: {page: data URL}}
//
// `file` names the blob in the store. What the server decodes is sent as it is; other kinds of
// pictures that this browser can show become PNG, and pictures of more than the server takes become
// smaller.

import { randomId } from "./tree.js";

const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"];
const MAX_BYTES = { image: 16 * 2 ** 20, video: 48 * 2 ** 20, pdf: 48 * 2 ** 20 };
const MAX_PIXELS = 40_000_000;
const REDUCED_SIDE = 4096;
const MP4 = /^....ftyp(isom|mp4|M4V|qt|avc1)/s;
const CLIP_WAIT = 2000; // milliseconds, for a clip to say how long it is
const CELL = 28; // pixels of a visual token's side

export class FileError extends Error {}

// the attachment of a picture or a clip, and its blob
export async function readFile(blob, name) {
  const kind = await kindOf(blob, name);
  if (kind === "video") checkSize(blob, kind, name);
  const read = kind === "image" ? readPicture : readClip;
  const [final, facts] = await read(blob, name);
  const shown = name || (kind === "image" ? "picture" : "clip");
  const attachment = { id: randomId(), file: randomId(), kind, name: shown, type: final.type };
  return { attachment: { ...attachment, bytes: final.size, ...facts }, blob: final };
}

export function checkSize(blob, kind, name) {
  if (blob.size <= MAX_BYTES[kind]) return;
  const limit = MAX_BYTES[kind] / 2 ** 20;
  throw new FileError(`${name} has ${megabytes(blob.size)} MB; at most ${limit} MB can be sent.`);
}

export const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);

export async function isPdf(blob) {
  return (await blob.slice(0, 1024).text()).includes("%PDF-");
}

async function kindOf(blob, name) {
  const head = new Uint8Array(await blob.slice(0, 1024).arrayBuffer());
  const start = String.fromCharCode(...head);
  if (start.startsWith("GIF8")) return (await isAnimated(blob)) ? "video" : "image";
  if (blob.type.startsWith("video/") || MP4.test(start)) return "video";
  if (blob.type === "image/svg+xml" || /\.svgz?$/i.test(name)) {
    throw new FileError(`${name} is a drawing (SVG); save it as a PNG first.`);
  }
  if (blob.type.startsWith("image/")) return "image";
  throw new FileError(`${name || "This file"} is neither a picture, a PDF nor a clip.`);
}

// more than one block that sets the time of a frame
async function isAnimated(blob) {
  const bytes = new Uint8Array(await blob.slice(0, 2 ** 20).arrayBuffer());
  let frames = 0;
  for (let i = 0; i + 3 < bytes.length && frames < 2; i += 1) {
    if (bytes[i] === 0 && bytes[i + 1] === 0x21 && bytes[i + 2] === 0xf9 && bytes[i + 3] === 4) {
      frames += 1;
    }
  }
  return frames > 1;
}

async function readPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob); // turned as its EXIF says, as on the server
  } catch {
    throw new FileError(`${name || "This picture"} cannot be read by this browser.`);
  }
  const { width, height } = bitmap;
  const isLarge = blob.size > MAX_BYTES.image || width * height > MAX_PIXELS;
  if (SENT_AS_IS.includes(blob.type) && !isLarge) {
    bitmap.close();
    return [blob, { width, height }];
  }
  const scale = isLarge ? Math.min(1, REDUCED_SIDE / Math.max(width, height)) : 1;
  const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
  const final = await toBlob(bitmap, size, isLarge ? "image/jpeg" : "image/png");
  bitmap.close();
  return [final, { ...size, isReduced: isLarge }];
}

// how long a clip is; the server may read clips that this browser cannot
async function readClip(blob) {
  const type = blob.type || "video/mp4";
  const final = blob.type ? blob : new Blob([blob], { type });
  if (type === "image/gif") return [final, {}];
  const video = document.createElement("video");
  const url = URL.createObjectURL(final);
  const seconds = await new Promise((resolve) => {
    video.onloadedmetadata = () => resolve(video.duration);
    video.onerror = () => resolve(null);
    setTimeout(() => resolve(null), CLIP_WAIT);
    video.src = url;
  });
  video.removeAttribute("src");
  URL.revokeObjectURL(url);
  return [final, Number.isFinite(seconds) && seconds !== null ? { seconds } : {}];
}

function toBlob(source, { width, height }, type, area = null) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const [x, y, w, h] = area ?? [0, 0, source.width ?? width, source.height ?? height];
  canvas.getContext("2d").drawImage(source, x, y, w, h, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
}

// a part of a picture, [x0, y0, x1, y1] in its own pixels, as a picture
export async function crop(blob, [x0, y0, x1, y1]) {
  const bitmap = await createImageBitmap(blob);
  const size = { width: x1 - x0, height: y1 - y0 };
  return toBlob(bitmap, size, "image/png", [x0, y0, size.width, size.height]);
}

export async function frameOf(video) {
  return toBlob(video, { width: video.videoWidth, height: video.videoHeight }, "image/jpeg", [
    0, 0, video.videoWidth, video.videoHeight,
  ]);
}

export function dataUrl(blob, type = blob.type) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:[^;,]*/, `data:${type}`));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// the bytes of a data URL in base64
export function blobOfUrl(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: /^data:([^;]*)/.exec(head)[1] });
}

// How many visual tokens a picture of this size becomes: both sides rounded to cells of 28 pixels,
// and the whole kept between two bounds (smart_resize of the model's processor).
export function visualTokens(width, height, { min_pixels: least, max_pixels: most }) {
  const cells = [width, height].map((side) => roundHalfToEven(side / CELL));
  const pixels = cells[0] * cells[1] * CELL ** 2;
  const scaled = (bound, round) => {
    const scale = Math.sqrt(bound / (width * height)) / CELL;
    return Math.max(1, round(width * scale)) * Math.max(1, round(height * scale));
  };
  if (pixels > most) return scaled(most, Math.floor);
  if (pixels < least || pixels === 0) return scaled(least, Math.ceil);
  return cells[0] * cells[1];
}

function roundHalfToEven(number) {
  const isHalf = number % 1 === 0.5;
  return isHalf ? 2 * Math.round(number / 2) : Math.round(number);
}
