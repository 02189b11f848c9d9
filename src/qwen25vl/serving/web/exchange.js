// Conversations as a JSON file, and back.
//
//   {format: "qwen25vl conversations", version: 1, conversations: […], files: {id: data URL}}
//
// A file may come from anywhere: each field is checked and copied by name, and everything gets new
// ids, so that nothing that is stored can be overwritten.

import { dataUrl } from "./media.js";
import { attachmentsOf, newConversation, randomId, ROOT } from "./tree.js";

const FORMAT = "qwen25vl conversations";
const STATES = ["done", "cut", "stopped", "failed"];
const KINDS = { image: /^image\/(png|jpeg|webp|bmp|gif)$/, video: /^(video\/[\w.+-]+|image\/gif)$/, pdf: /^application\/pdf$/ };

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
  const whole = readJson(text);
  const files = new Map();
  const found = [];
  for (const given of whole.conversations) {
    const conversation = readConversation(given, files);
    for (const attachment of attachmentsOf(conversation)) {
      const blob = blobOf(whole.files[attachment.original], attachment);
      delete attachment.original;
      await store.saveFile({ id: attachment.file, blob });
    }
    found.push(conversation);
  }
  for (const conversation of found) await store.save(conversation);
  return found;
}

function readJson(text) {
  let whole;
  try {
    whole = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  check(whole?.format === FORMAT && whole.version === 1, `"format" is not "${FORMAT}", version 1`);
  check(Array.isArray(whole.conversations) && isObject(whole.files), "there are no conversations");
  return whole;
}

function check(holds, reason) {
  if (!holds) throw new Error(`This is not a file of exported conversations: ${reason}.`);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const textOf = (value) => (typeof value === "string" ? value : "");

function readConversation(given, files) {
  check(isObject(given) && isObject(given.nodes) && isObject(given.chosen), "a conversation is broken");
  const conversation = newConversation();
  conversation.title = textOf(given.title);
  conversation.system = textOf(given.system);
  if (isNumber(given.created)) conversation.created = given.created;
  const ids = new Map(Object.keys(given.nodes).map((id) => [id, randomId()]));
  ids.set(ROOT, ROOT);
  for (const [id, node] of Object.entries(given.nodes)) {
    check(isObject(node) && ids.has(node.parent), "a message has no place");
    const own = { id: ids.get(id), parent: ids.get(node.parent), text: textOf(node.text) };
    const rest = node.role === "user" ? readQuestion(node, files) : readAnswer(node);
    conversation.nodes[own.id] = { ...own, ...rest };
  }
  for (const [parent, child] of Object.entries(given.chosen)) {
    const isKnown = ids.has(parent) && given.nodes[child]?.parent === parent;
    check(isKnown, "a version of a message is missing");
    conversation.chosen[ids.get(parent)] = ids.get(child);
  }
  checkNoCircle(conversation);
  return conversation;
}

function checkNoCircle({ nodes }) {
  for (let node of Object.values(nodes)) {
    for (let steps = 0; node; steps += 1) {
      check(steps <= 10_000, "its messages form a circle");
      node = nodes[node.parent];
    }
  }
}

function readQuestion(node, files) {
  check(Array.isArray(node.attachments), "a question has no list of attachments");
  return { role: "user", attachments: node.attachments.map((one) => readAttachment(one, files)) };
}

function readAttachment(given, files) {
  check(isObject(given) && KINDS[given.kind]?.test(given.type), "an attachment is of no known kind");
  const original = String(given.file);
  if (!files.has(original)) files.set(original, randomId());
  const { kind, type } = given;
  const own = { id: randomId(), file: files.get(original), original, kind, type };
  const attachment = { ...own, name: textOf(given.name), bytes: 0 };
  const [width, height] = [given.width, given.height];
  if (kind === "image") {
    check(width > 0 && height > 0 && isNumber(width) && isNumber(height), "a picture has no size");
    return { ...attachment, width, height };
  }
  return kind === "pdf" ? { ...attachment, ...readPages(given) } : attachment;
}

function readPages({ pages, numPages, sizes, thumbnails }) {
  const isList = Array.isArray(pages) && pages.length > 0 && pages.every(Number.isInteger);
  check(isList && Number.isInteger(numPages) && isObject(sizes), "a document has no pages");
  const ownSizes = pages.map((page) => [page, (sizes[page] ?? []).filter(isNumber).slice(0, 2)]);
  check(ownSizes.every(([, size]) => size.length === 2), "a page has no size");
  const drawn = pages.map((page) => [page, textOf(thumbnails?.[page])]);
  const own = drawn.filter(([, image]) => image.startsWith("data:image/png;base64,"));
  return { pages, numPages, sizes: Object.fromEntries(ownSizes), thumbnails: Object.fromEntries(own) };
}

function readAnswer(node) {
  const answer = { role: "assistant", state: STATES.includes(node.state) ? node.state : "stopped" };
  if (isObject(node.error)) answer.error = { message: textOf(node.error.message) };
  if (isNumber(node.seconds)) answer.seconds = node.seconds;
  for (const name of ["usage", "timings"]) if (isObject(node[name])) answer[name] = numbersOf(node[name]);
  for (const [name, length] of [["boxes", 4], ["points", 2]]) {
    const field = name === "boxes" ? "box" : "point";
    const marks = Array.isArray(node[name]) ? node[name] : [];
    const kept = marks.filter((mark) => isPlace(mark?.[field], length));
    answer[name] = kept.map((mark) => ({
      label: textOf(mark.label), [field]: mark[field], picture: Number(mark.picture) || 0,
    }));
  }
  answer.media = (Array.isArray(node.media) ? node.media : []).filter(isObject).map((one) => ({
    kind: textOf(one.kind), name: textOf(one.name), page: isNumber(one.page) ? one.page : undefined,
    num_tokens: Number(one.num_tokens) || 0,
    original_size: isPlace(one.original_size, 2) ? one.original_size : undefined,
    model_size: isPlace(one.model_size, 2) ? one.model_size : undefined,
  }));
  return answer;
}

const isPlace = (value, length) =>
  Array.isArray(value) && value.length === length && value.every(isNumber);

// the numbers of an object, and those one level down
function numbersOf(given, depth = 0) {
  const entries = Object.entries(given).map(([name, value]) => {
    if (isObject(value) && depth === 0) return [name, numbersOf(value, 1)];
    return [name, isNumber(value) ? value : undefined];
  });
  return Object.fromEntries(entries);
}

function blobOf(url, attachment) {
  const found = /^data:[^,]*;base64,([A-Za-z0-9+/=]*)$/.exec(textOf(url));
  check(found, `the file of ${attachment.name || "an attachment"} is missing`);
  const bytes = Uint8Array.from(atob(found[1]), (char) => char.charCodeAt(0));
  attachment.bytes = bytes.length;
  return new Blob([bytes], { type: attachment.type });
}
