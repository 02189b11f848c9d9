// Reads a file of exported conversations, which may come from anywhere: each field is checked and
// copied by name, and everything gets a new id, so that nothing that is stored can be overwritten.

import { newConversation, randomId, ROOT } from "./tree.js";

const STATES = ["done", "cut", "stopped", "failed"];
const TYPES = {
  image: /^image\/(png|jpeg|webp|bmp|gif)$/,
  video: /^(video\/[\w.+-]+|image\/gif)$/,
  pdf: /^application\/pdf$/,
};
const MAX_LENGTH = 10_000; // messages of one path

function check(holds, reason) {
  if (!holds) throw new Error(`This is not a file of exported conversations: ${reason}.`);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isSize = (value) => isNumber(value) && value > 0;
const textOf = (value) => (typeof value === "string" ? value : "");
const numberOf = (value) => (isNumber(value) ? value : undefined);
const listOf = (value) => (Array.isArray(value) ? value.filter(isObject) : []);

const isPlace = (value, length) =>
  Array.isArray(value) && value.length === length && value.every(isNumber);

export function readJson(text, format) {
  let whole;
  try {
    whole = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  check(whole?.format === format && whole.version === 1, `"format" is not "${format}", version 1`);
  check(Array.isArray(whole.conversations) && isObject(whole.files), "it has no conversations");
  return whole;
}

// fileIds: the new id of each file, filled here
export function readConversation(given, fileIds) {
  const isWhole = isObject(given) && isObject(given.nodes) && isObject(given.chosen);
  check(isWhole, "a conversation has no messages");
  const conversation = newConversation();
  conversation.title = textOf(given.title);
  conversation.system = textOf(given.system);
  conversation.created = numberOf(given.created) ?? conversation.created;
  const ids = new Map(Object.keys(given.nodes).map((id) => [id, randomId()]));
  ids.set(ROOT, ROOT);
  for (const [id, node] of Object.entries(given.nodes)) {
    check(isObject(node) && ids.has(node.parent), "a message has no place");
    const own = { id: ids.get(id), parent: ids.get(node.parent), text: textOf(node.text) };
    const rest = node.role === "user" ? readQuestion(node, fileIds) : readAnswer(node);
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
  for (const first of Object.values(nodes)) {
    let steps = 0;
    for (let node = first; node; node = nodes[node.parent]) {
      steps += 1;
      check(steps <= MAX_LENGTH, "its messages form a circle");
    }
  }
}

function readQuestion(node, fileIds) {
  check(Array.isArray(node.attachments), "a question has no list of attachments");
  return { role: "user", attachments: node.attachments.map((one) => readAttachment(one, fileIds)) };
}

function readAttachment(given, fileIds) {
  const isKnown = isObject(given) && Object.hasOwn(TYPES, given.kind);
  check(isKnown && TYPES[given.kind].test(given.type), "an attachment is of no known kind");
  const original = String(given.file);
  if (!fileIds.has(original)) fileIds.set(original, randomId());
  const { kind, type, width, height } = given;
  const own = { id: randomId(), file: fileIds.get(original), kind, type, bytes: 0 };
  const attachment = { ...own, name: textOf(given.name) };
  if (kind === "video") return { ...attachment, seconds: numberOf(given.seconds) };
  if (kind === "pdf") return { ...attachment, ...readPages(given) };
  check(isSize(width) && isSize(height), "a picture has no size");
  return { ...attachment, width, height };
}

function readPages({ pages, numPages, sizes, thumbnails }) {
  const isList = Array.isArray(pages) && pages.length > 0 && pages.every(Number.isInteger);
  check(isList && Number.isInteger(numPages) && isObject(sizes), "a document has no pages");
  check(pages.every((page) => isPlace(sizes[page], 2)), "a page has no size");
  const drawn = pages
    .map((page) => [page, textOf(thumbnails?.[page])])
    .filter(([, image]) => image.startsWith("data:image/png;base64,"));
  const ownSizes = Object.fromEntries(pages.map((page) => [page, sizes[page]]));
  return { pages, numPages, sizes: ownSizes, thumbnails: Object.fromEntries(drawn) };
}

function readAnswer(node) {
  const answer = { role: "assistant", state: STATES.includes(node.state) ? node.state : "stopped" };
  if (isObject(node.error)) answer.error = { message: textOf(node.error.message) };
  if (isNumber(node.seconds)) answer.seconds = node.seconds;
  if (isObject(node.usage)) answer.usage = readUsage(node.usage);
  if (isObject(node.timings)) answer.timings = numbersOf(node.timings);
  answer.boxes = readMarks(node.boxes, "box", 4);
  answer.points = readMarks(node.points, "point", 2);
  answer.media = listOf(node.media).map(readMedium);
  return answer;
}

function readMarks(given, field, length) {
  return listOf(given)
    .filter((mark) => isPlace(mark[field], length))
    .map((mark) => ({
      label: textOf(mark.label),
      [field]: mark[field],
      picture: numberOf(mark.picture),
    }));
}

function readMedium(given) {
  const { original_size: original, model_size: seen } = given;
  return {
    kind: textOf(given.kind),
    name: textOf(given.name),
    page: numberOf(given.page),
    num_tokens: numberOf(given.num_tokens) ?? 0,
    original_size: isPlace(original, 2) ? original : undefined,
    model_size: isPlace(seen, 2) ? seen : undefined,
  };
}

function readUsage(given) {
  const details = given.prompt_tokens_details;
  const usage = { prompt_tokens: 0, completion_tokens: 0, ...numbersOf(given) };
  if (isObject(details)) usage.prompt_tokens_details = numbersOf(details);
  return usage;
}

const numbersOf = (given) =>
  Object.fromEntries(Object.entries(given).filter(([, value]) => isNumber(value)));

export function blobOf(url, attachment) {
  const found = /^data:[^,]*;base64,([A-Za-z0-9+/=]*)$/.exec(textOf(url));
  check(found, `the file of ${attachment.name || "an attachment"} is missing`);
  let text;
  try {
    text = atob(found[1]);
  } catch {
    throw new Error(`The file of ${attachment.name || "an attachment"} is damaged.`);
  }
  const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: attachment.type });
}
