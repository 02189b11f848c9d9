// The conversation that is shown, and the answers that are being written, also in others.

import { announce, byId } from "./dom.js";
import { AnswerView, questionView } from "./message.js";
import { notify, reportError } from "./notices.js";
import { requestBody } from "./request.js";
import { runAnswer } from "./run.js";
import { addNode, attachmentsOf, choose, pathOf, siblings, titleOf } from "./tree.js";
import { keepUrls } from "./urls.js";

const SAVE_EVERY = 2000; // milliseconds, while an answer is written
const NEAR = 60; // pixels from the end, within which the page follows what is written

// on: {changed(), removed(ids), edit(node), open(attachment, page),
//      crop(attachment, page, box, size), settings(), model(),
//      kept(): attachments that stay shown}
export class Chat {
  constructor(store, on) {
    Object.assign(this, { store, on, conversation: null, runs: new Map(), follows: true });
    this.top = 0; // where the log was scrolled to
    this.deleted = new WeakSet(); // conversations whose answers may still be on their way
    this.shown = new Map(); // what stands in the log: key of a node -> element
    this.log = byId("log");
    this.scroller = byId("scroller");
    this.scroller.addEventListener("scroll", () => this.scrolled());
    byId("latest").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.grown()).observe(this.log);
    this.messageActions = {
      edit: (node) => on.edit(node),
      regenerate: (node) => this.regenerate(node),
      choose: (node) => this.choose(node),
      open: (attachment, page) => on.open(attachment, page),
      crop: (attachment, page, box, size) => on.crop(attachment, page, box, size),
      grown: () => this.grown(),
    };
  }

  get isRunning() {
    return this.runs.has(this.conversation.id);
  }

  show(conversation) {
    this.conversation = conversation;
    this.shown.clear();
    keepUrls([...attachmentsOf(conversation), ...this.on.kept()]);
    this.render();
    this.toEnd();
  }

  render() {
    const path = pathOf(this.conversation);
    const before = this.shown;
    this.shown = new Map();
    for (const node of path) {
      const all = siblings(this.conversation, node);
      const key = `${node.id} ${all.length}`;
      this.shown.set(key, before.get(key) ?? this.view(node));
    }
    this.log.replaceChildren(...this.shown.values());
    byId("empty").hidden = path.length > 0;
    this.on.changed();
  }

  view(node) {
    if (node.role === "user") {
      return questionView(this.conversation, node, this.store, this.messageActions);
    }
    const view = new AnswerView(this.conversation, node, this.store, this.messageActions);
    const run = this.runs.get(this.conversation.id);
    if (run?.node === node) {
      run.view?.pause();
      run.view = view;
    }
    return view.element;
  }

  async ask({ text, attachments, edited }) {
    const parent = edited ? edited.parent : pathOf(this.conversation).at(-1)?.id;
    const node = addNode(this.conversation, parent, { role: "user", text, attachments });
    await this.answer(node.id);
  }

  regenerate(node) {
    if (!this.isRunning) this.answer(node.parent);
  }

  async answer(parent) {
    const { conversation } = this;
    const settings = this.on.settings();
    const node = addNode(conversation, parent, { role: "assistant", text: "", state: "running" });
    const run = { node, controller: new AbortController(), view: null };
    this.runs.set(conversation.id, run);
    this.render();
    this.toEnd();
    await this.save(conversation);
    const stopSaving = this.saveWhileWriting(conversation);
    const body = async () =>
      requestBody(conversation, parent, settings, await this.on.model(), this.store);
    await runAnswer(node, body, run.controller.signal, {
      text: (delta) => run.view?.text(delta),
      stage: (stage) => run.view?.setStage(stage),
      waiting: (wait) => run.view?.waiting(wait),
      sign: () => run.view?.sign(),
    });
    stopSaving();
    this.runs.delete(conversation.id);
    await this.save(conversation);
    this.finished(conversation, node, run);
  }

  finished(conversation, node, run) {
    run.view?.finish();
    if (conversation === this.conversation) {
      announce(node.error ? `Failed: ${node.error.message}` : `Answer: ${node.text}`);
      this.on.changed();
    } else if (!this.deleted.has(conversation)) {
      notify(`The answer in “${titleOf(conversation)}” is there.`);
    }
  }

  // ends what is written for a conversation that is deleted, and never saves it again
  forget(conversation) {
    this.deleted.add(conversation);
    this.runs.get(conversation.id)?.controller.abort();
  }

  stop() {
    this.runs.get(this.conversation.id)?.controller.abort();
  }

  choose(node) {
    choose(this.conversation, node);
    this.render();
    this.save(this.conversation);
  }

  // what is written so far survives a closed tab
  saveWhileWriting(conversation) {
    const timer = setInterval(async () => {
      if (this.deleted.has(conversation)) return;
      try {
        await this.store.write("conversations", conversation);
      } catch {
        clearInterval(timer); // the save at the end of the answer says why
      }
    }, SAVE_EVERY);
    return () => clearInterval(timer);
  }

  async save(conversation) {
    if (this.deleted.has(conversation)) return;
    try {
      const gone = await this.store.save(conversation);
      const names = gone.map((one) => `“${titleOf(one)}”`).join(", ");
      if (names) {
        this.on.removed(gone.map((one) => one.id));
        notify(`The browser's space for conversations was full. Removed: ${names}.`);
      }
    } catch (error) {
      reportError(new Error(`This conversation is not saved: ${error.message}`));
    }
    this.on.changed();
  }

  // Only a person scrolls up: a picture that is loaded makes the way to the end longer, too.
  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.follows = true;
    else if (scrollTop < this.top) this.follows = false;
    this.top = scrollTop;
    byId("latest").hidden = this.follows;
  }

  grown() {
    if (this.follows) this.toEnd();
    else byId("latest").hidden = false;
  }

  toEnd() {
    this.follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
    byId("latest").hidden = true;
  }
}
