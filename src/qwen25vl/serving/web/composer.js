// The field where a question is written, with its pictures, clips and pages.

import { hasCamera, takePicture } from "./camera.js";
import { byId, element } from "./dom.js";
import { checkSize, isPdf, readFile } from "./media.js";
import { reportError } from "./notices.js";
import { choosePages } from "./pdf.js";
import { editableList } from "./thumbnails.js";

// on: {send({text, attachments, edited}), stop(), open(attachment), budget(), changed()}
export class Composer {
  constructor(store, on) {
    Object.assign(this, { store, on, items: [], edited: null, draft: null, isRunning: false });
    this.field = byId("question");
    this.list = byId("attachments");
    this.sendButton = byId("send");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isRunning) on.stop();
      else this.send();
    });
    this.field.addEventListener("input", () => this.show());
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("paste", (event) => this.paste(event));
    byId("attach").addEventListener("click", () => byId("files").click());
    byId("camera").addEventListener("click", () => this.photograph());
    byId("cancel-edit").addEventListener("click", () => this.endEdit());
    for (const id of ["files", "photo"]) {
      byId(id).addEventListener("change", (event) => {
        this.addFiles([...event.target.files]);
        event.target.value = "";
      });
    }
    this.show();
  }

  key(event) {
    const isPhone = matchMedia("(pointer: coarse)").matches; // its keyboard has no Shift+Enter
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || isPhone) return;
    event.preventDefault();
    if (!this.isRunning) this.send();
  }

  paste(event) {
    const files = [...event.clipboardData.files];
    const hasText = event.clipboardData.getData("text/plain") !== ""; // a table as text and picture
    if (!files.length || hasText) return;
    event.preventDefault();
    this.addFiles(files);
  }

  async photograph() {
    if (!hasCamera()) {
      byId("photo").click();
      return;
    }
    try {
      const blob = await takePicture();
      if (blob) await this.addFiles([new File([blob], "photo.jpg", { type: blob.type })]);
    } catch (error) {
      reportError(new Error(`The camera cannot be used: ${error.message}`));
    }
    this.field.focus();
  }

  // one after the other, so that they keep their order
  async addFiles(files) {
    for (const file of files) {
      const label = `Reading ${file.name}`;
      const waiting = element("li", { class: "chip waiting", "aria-label": label });
      this.list.append(waiting);
      try {
        if (await isPdf(file)) await this.addPdf(file);
        else {
          const { attachment, blob } = await readFile(file, file.name);
          await this.add(attachment, blob);
        }
      } catch (error) {
        reportError(error);
      }
      waiting.remove();
    }
    this.show();
    this.field.focus();
  }

  async addPdf(file) {
    const name = file.name || "document.pdf";
    checkSize(file, "pdf", name);
    const attachment = await choosePages(file, name);
    if (attachment) await this.add(attachment, file);
  }

  async add(attachment, blob) {
    await this.store.saveFile({ id: attachment.file, blob });
    this.items = [...this.items, attachment];
    this.show();
  }

  // other pages of the same document
  async changePages(item) {
    try {
      const blob = await this.store.readFile(item.file);
      const changed = await choosePages(blob, item.name, item.pages);
      if (!changed) return;
      const { pages, sizes, thumbnails } = changed;
      const replaced = { ...item, pages, sizes, thumbnails };
      this.items = this.items.map((one) => (one === item ? replaced : one));
      this.show();
    } catch (error) {
      reportError(error);
    }
  }

  // The old question is kept beside the new one, and what stood in the field comes back after it.
  edit(node) {
    this.draft ??= { text: this.field.value, items: this.items };
    this.edited = node;
    this.fill({ text: node.text, items: [...node.attachments] });
    this.field.focus();
  }

  endEdit() {
    if (!this.edited) return;
    const { draft } = this;
    Object.assign(this, { edited: null, draft: null });
    this.fill(draft);
  }

  fill({ text, items }) {
    this.field.value = text;
    this.items = items;
    this.show();
  }

  send() {
    const text = this.field.value.trim();
    if (!text && !this.items.length) return;
    const sent = { text, attachments: this.items, edited: this.edited };
    if (this.edited) this.endEdit();
    else this.fill({ text: "", items: [] });
    this.on.send(sent);
  }

  setRunning(isRunning) {
    this.isRunning = isRunning;
    this.show();
  }

  show() {
    editableList(this.list, this.items, this.store, {
      change: (items) => {
        this.items = items;
        this.show();
      },
      open: (item) => (item.kind === "pdf" ? this.changePages(item) : this.on.open(item)),
      budget: this.on.budget,
    });
    this.list.hidden = this.items.length === 0;
    byId("editing").hidden = this.edited === null;
    const isEmpty = !this.field.value.trim() && !this.items.length;
    this.sendButton.disabled = isEmpty && !this.isRunning;
    this.sendButton.classList.toggle("running", this.isRunning);
    const label = this.isRunning ? "Stop the answer (Esc)" : "Send (Enter)";
    this.sendButton.setAttribute("aria-label", label);
    this.sendButton.setAttribute("title", label);
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, window.innerHeight * 0.4)}px`;
  }
}
