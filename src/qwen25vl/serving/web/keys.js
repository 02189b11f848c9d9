// Keyboard shortcuts. Letters are told by their key's place: with Alt, a Mac writes other ones.

import { byId } from "./dom.js";

// actions: {code: function} for Alt and a key; escape(); editLast()
export function listen(actions, escape, editLast) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const hasDialog = document.querySelector("dialog[open]") !== null;
    if (hasDialog) return;
    if (event.key === "Escape") escape();
    else if (event.altKey && !event.ctrlKey && !event.metaKey && actions[event.code]) {
      event.preventDefault();
      actions[event.code]();
    } else if (isPlain(event) && event.key === "?" && !isWriting()) {
      event.preventDefault();
      actions.Slash();
    } else if (isPlain(event) && event.key === "ArrowUp" && isEmptyQuestion()) {
      event.preventDefault();
      editLast();
    }
  });
}

const isPlain = (event) => !event.altKey && !event.ctrlKey && !event.metaKey;

const isWriting = () => ["TEXTAREA", "INPUT"].includes(document.activeElement?.tagName);

const isEmptyQuestion = () =>
  document.activeElement === byId("question") && byId("question").value === "";
