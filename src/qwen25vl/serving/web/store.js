// Conversations and their files, kept in the browser's IndexedDB. Files are blobs under their own
// ids. Everything together stays below MAX_BYTES: the oldest conversations go first, and the page
// says so. Where the browser has no IndexedDB (some private windows), memory takes its place.

import { attachmentsOf } from "./tree.js";

export const MAX_BYTES = 256 * 2 ** 20;
const NAME = "qwen25vl";
const KEPT_UNUSED = 24 * 60 * 60 * 1000; // milliseconds

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });

export class Store {
  constructor(database) {
    this.database = database;
    this.memory = { conversations: new Map(), files: new Map() };
  }

  static async open() {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("conversations", { keyPath: "id" });
        request.result.createObjectStore("files", { keyPath: "id" });
      };
      return new Store(await result(request));
    } catch {
      return new Store(null);
    }
  }

  get isLasting() {
    return this.database !== null;
  }

  async read(name, id) {
    if (!this.database) return this.memory[name].get(id);
    return result(this.database.transaction(name).objectStore(name).get(id));
  }

  async readAll(name) {
    if (!this.database) return [...this.memory[name].values()];
    return result(this.database.transaction(name).objectStore(name).getAll());
  }

  async write(name, value) {
    if (!this.database) {
      this.memory[name].set(value.id, structuredClone(value));
      return;
    }
    const transaction = this.database.transaction(name, "readwrite");
    transaction.objectStore(name).put(value);
    await finished(transaction);
  }

  async remove(name, ids) {
    if (!this.database) {
      for (const id of ids) this.memory[name].delete(id);
      return;
    }
    const transaction = this.database.transaction(name, "readwrite");
    for (const id of ids) transaction.objectStore(name).delete(id);
    await finished(transaction);
  }

  async saveFile({ id, blob }) {
    try {
      await this.write("files", { id, blob, added: Date.now() });
    } catch (error) {
      if (error?.name !== "QuotaExceededError") throw error;
      throw new Error("This browser has no room left. Delete old conversations in the settings.");
    }
  }

  async readFile(id) {
    return (await this.read("files", id))?.blob ?? null;
  }

  // newest first
  async conversations() {
    const all = await this.readAll("conversations");
    return all.sort((a, b) => b.updated - a.updated);
  }

  // the conversations that had to make room
  async save(conversation) {
    await this.write("conversations", conversation);
    return this.makeRoom(conversation.id);
  }

  async delete(conversation) {
    const own = attachmentsOf(conversation).map((attachment) => attachment.file);
    const others = (await this.conversations()).filter((other) => other.id !== conversation.id);
    const shared = new Set(others.flatMap(attachmentsOf).map((attachment) => attachment.file));
    await this.remove("files", own.filter((id) => !shared.has(id)));
    await this.remove("conversations", [conversation.id]);
  }

  async clear() {
    for (const name of ["conversations", "files"]) {
      await this.remove(name, (await this.readAll(name)).map((value) => value.id));
    }
  }

  async bytes() {
    return (await this.conversations()).reduce((sum, one) => sum + bytesOf(one), 0);
  }

  async makeRoom(keptId) {
    const all = await this.conversations();
    let total = all.reduce((sum, one) => sum + bytesOf(one), 0);
    const gone = [];
    while (total > MAX_BYTES && all.length) {
      const oldest = all.pop();
      if (oldest.id === keptId) continue;
      await this.delete(oldest);
      total -= bytesOf(oldest);
      gone.push(oldest);
    }
    return gone;
  }

  // files of no conversation, such as those of a question that was never sent; younger ones may
  // belong to one that is being written in another tab
  async sweep() {
    const attachments = (await this.conversations()).flatMap(attachmentsOf);
    const used = new Set(attachments.map((attachment) => attachment.file));
    const files = await this.readAll("files");
    const isLeft = ({ id, added }) => !used.has(id) && Date.now() - added > KEPT_UNUSED;
    await this.remove("files", files.filter(isLeft).map((file) => file.id));
  }
}

function bytesOf(conversation) {
  const files = new Map(attachmentsOf(conversation).map((one) => [one.file, one.bytes]));
  const texts = Object.values(conversation.nodes).reduce((sum, node) => sum + node.text.length, 0);
  return [...files.values()].reduce((sum, bytes) => sum + bytes, 2 * texts);
}
