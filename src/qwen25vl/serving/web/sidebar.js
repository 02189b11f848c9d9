// The list of conversations.

import { byId, element, iconButton } from "./dom.js";
import { titleOf } from "./tree.js";

const DAY = 24 * 60 * 60 * 1000;

// on: {open(conversation), remove(conversation), save(conversation), rename(conversation)}
export function showConversations(conversations, current, running, on) {
  const wanted = byId("search").value.trim().toLowerCase();
  const shown = conversations.filter((one) => titleOf(one).toLowerCase().includes(wanted));
  const list = byId("conversations");
  const groups = Map.groupBy ? Map.groupBy(shown, ageOf) : groupByAge(shown);
  list.replaceChildren(...[...groups].flatMap(([age, members]) => [
    element("li", { class: "age" }, age),
    ...members.map((one) => row(one, one.id === current.id, running.has(one.id), on)),
  ]));
  byId("search").hidden = conversations.length < 6 && !wanted;
}

function groupByAge(conversations) {
  const groups = new Map();
  for (const one of conversations) groups.set(ageOf(one), [...(groups.get(ageOf(one)) ?? []), one]);
  return groups;
}

function ageOf(conversation) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (conversation.updated >= today) return "Today";
  if (conversation.updated >= today - DAY) return "Yesterday";
  return conversation.updated >= today - 7 * DAY ? "This week" : "Earlier";
}

function row(conversation, isCurrent, isRunning, on) {
  const title = titleOf(conversation);
  const current = isCurrent ? "page" : null;
  const properties = { type: "button", class: "open", title, "aria-current": current };
  const writing = { class: "dot", title: "An answer is being written" };
  const dot = isRunning ? element("span", writing) : null;
  return element("li", { class: isCurrent ? "current" : null },
    element("button", { ...properties, onclick: () => on.open(conversation) }, dot, title),
    element("span", { class: "row-actions" },
      iconButton("edit", `Rename ${title}`, () => on.rename(conversation)),
      iconButton("download", `Save ${title} as a file`, () => on.save(conversation)),
      iconButton("trash", `Delete ${title}`, () => on.remove(conversation))));
}
