// A conversation is a tree: an edited question and a repeated answer stand beside the old one, so
// nothing is lost. What is shown is one path from the root.
//
//   {id, title, created, updated, system, chosen: {parent or "root": child}, nodes: {id: node}}
//   question: {id, parent, role: "user", text, attachments}
//   answer:   {id, parent, role: "assistant", text, state, error?, usage?, timings?, seconds?,
//              media?, boxes?, points?}
//   state: "running" | "done" | "cut" (at the token limit) | "stopped" | "failed"

export const ROOT = "root";

export function newConversation() {
  const now = Date.now();
  const id = crypto.randomUUID?.() ?? randomId();
  return { id, title: "", created: now, updated: now, system: "", chosen: {}, nodes: {} };
}

// randomUUID exists only on https and localhost
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function addNode(conversation, parent, node) {
  const whole = { ...node, id: randomId(), parent: parent ?? ROOT };
  conversation.nodes[whole.id] = whole;
  conversation.chosen[whole.parent] = whole.id;
  conversation.updated = Date.now();
  return whole;
}

// the nodes that are shown, in order
export function pathOf(conversation) {
  const path = [];
  let next = conversation.chosen[ROOT];
  while (next) {
    path.push(conversation.nodes[next]);
    next = conversation.chosen[next];
  }
  return path;
}

// the nodes from the root to this one
export function ancestry(conversation, id) {
  const path = [];
  for (let node = conversation.nodes[id]; node; node = conversation.nodes[node.parent]) {
    path.unshift(node);
  }
  return path;
}

export function siblings(conversation, node) {
  return Object.values(conversation.nodes).filter((other) => other.parent === node.parent);
}

export function choose(conversation, node) {
  conversation.chosen[node.parent] = node.id;
}

export function attachmentsOf(conversation) {
  return Object.values(conversation.nodes).flatMap((node) => node.attachments ?? []);
}

// The pictures that an answer was given about, in the order of the server: each picture, and each
// page of a document, counts one; clips do not count.
export function picturesBefore(conversation, answer) {
  const attachments = ancestry(conversation, answer.id).flatMap((node) => node.attachments ?? []);
  return attachments.flatMap((attachment) => {
    if (attachment.kind === "image") return [{ attachment, page: null }];
    if (attachment.kind === "pdf") return attachment.pages.map((page) => ({ attachment, page }));
    return [];
  });
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = Object.values(conversation.nodes).find((node) => node.role === "user");
  if (!first) return "New conversation";
  const line = first.text.trim().split("\n")[0];
  const title = line || first.attachments.map((attachment) => attachment.name).join(", ");
  return title.length > 60 ? `${title.slice(0, 59)}…` : title;
}

export function toMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.system) parts.push(`**System:** ${conversation.system}`);
  for (const node of pathOf(conversation)) {
    const who = node.role === "user" ? "You" : "Model";
    const names = (node.attachments ?? []).map((attachment) => `*${attachment.name}*`);
    parts.push(`## ${who}`, ...(names.length ? [names.join(", ")] : []), node.text);
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}
