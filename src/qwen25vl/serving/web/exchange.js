// Conversations as a JSON file, and back.
//
//   {format: "qwen25vl conversations", version: 1, conversations: […], files: {id: data URL}}

import { blobOf, readConversation, readJson } from "./imported.js";
import { dataUrl } from "./media.js";
import { attachmentsOf } from "./tree.js";

export const FORMAT = "qwen25vl conversations";

export async function exportConversations(conversations, store) {
  const files = {};
  for (const { file, type } of conversations.flatMap(attachmentsOf)) {
    const blob = files[file] ? null : await store.readFile(file);
    if (blob) files[file] = await dataUrl(blob, type);
  }
  const whole = { format: FORMAT, version: 1, conversations, files };
  return new Blob([JSON.stringify(whole)], { type: "application/json" });
}

// saves the conversations of the file and returns them
export async function importConversations(text, store) {
  const whole = readJson(text, FORMAT);
  const ids = new Map(); // of files: old -> new
  const found = whole.conversations.map((given) => readConversation(given, ids));
  const originals = new Map([...ids].map(([old, own]) => [own, old]));
  const blobs = new Map();
  for (const attachment of found.flatMap(attachmentsOf)) {
    const { file } = attachment;
    const url = whole.files[originals.get(file)];
    if (!blobs.has(file)) blobs.set(file, blobOf(url, attachment));
    attachment.bytes = blobs.get(file).size;
  }
  for (const [id, blob] of blobs) await store.saveFile({ id, blob });
  for (const conversation of found) await store.save(conversation);
  return found;
}
