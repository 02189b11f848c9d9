// The whole window takes files that are dropped on it.

import { byId } from "./dom.js";

export function listenForFiles(add) {
  let depth = 0; // each element under the pointer reports its own coming and going
  const target = byId("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (change) => {
    depth = Math.max(0, depth + change);
    target.hidden = depth === 0;
  };
  window.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  window.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  window.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show(0);
    add([...event.dataTransfer.files]);
  });
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || event.defaultPrevented) return;
    event.preventDefault();
    add(files);
  });
}
