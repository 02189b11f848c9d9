// Puts the page together.

import { readModels, setKey, setKeyPrompt } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { count } from "./cost.js";
import { byId, copyText, download, openDialog } from "./dom.js";
import { listenForFiles } from "./drop.js";
import { exportConversations, importConversations } from "./exchange.js";
import { listen } from "./keys.js";
import { readFile } from "./media.js";
import { confirm, notify, reportError } from "./notices.js";
import { cutBox, openAttachment } from "./parts.js";
import { applyTheme, openSettings, readSettings, showStorage } from "./settings.js";
import { showConversations } from "./sidebar.js";
import { Store } from "./store.js";
import { newConversation, pathOf, titleOf, toMarkdown } from "./tree.js";

const RETRY_SECONDS = 5;
const OPEN = "qwen25vl-open"; // the conversation that a reload shows again
const settings = readSettings();
const store = await Store.open();
let models = []; // the names of the model, and its adapters
let model = null;
let conversations = await store.conversations();

applyTheme(settings.theme);
setKeyPrompt(askForKey);

const composer = new Composer(store, {
  send: (question) => chat.ask(question),
  stop: () => chat.stop(),
  open: (attachment) => addPart(openAttachment(attachment, null, store)),
  budget: () => budget(),
});
const chat = new Chat(store, {
  changed: () => changed(),
  removed: (ids) => {
    conversations = conversations.filter((one) => !ids.includes(one.id));
  },
  edit: (node) => composer.edit(node),
  open: (attachment, page) => addPart(openAttachment(attachment, page, store)),
  crop: (attachment, page, box, size) => addPart(cutBox(attachment, page, box, size, store)),
  settings: () => ({ ...settings }),
  model: async () => (model ?? (await connect())).id,
  kept: () => composer.items,
});

function changed() {
  const { conversation } = chat;
  const isStored = Object.keys(conversation.nodes).length > 0;
  if (isStored && !conversations.includes(conversation)) conversations.unshift(conversation);
  conversations.sort((a, b) => b.updated - a.updated);
  composer.setRunning(chat.isRunning);
  byId("title").textContent = isStored ? titleOf(conversation) : "New conversation";
  document.title = isStored ? `${titleOf(conversation)} · qwen25vl` : "qwen25vl";
  byId("copy-all").disabled = !isStored;
  byId("system-mark").hidden = !conversation.system;
  showModel();
  showConversations(conversations, conversation, chat.runs, {
    open: (one) => show(one),
    remove: (one) => remove(one),
    rename: (one) => rename(one),
    save: async (one) => download(fileName(titleOf(one)), await exportConversations([one], store)),
  });
}

function show(conversation) {
  composer.endEdit();
  chat.show(conversation);
  sessionStorage.setItem(OPEN, conversation.id);
  showSidebar(false);
  byId("question").focus();
}

async function remove(conversation) {
  if (!(await confirm(`Delete “${titleOf(conversation)}”?`, "Delete"))) return;
  chat.forget(conversation);
  await store.delete(conversation);
  conversations = conversations.filter((one) => one !== conversation);
  if (conversation === chat.conversation) show(newConversation());
  else changed();
}

async function rename(conversation) {
  byId("rename-field").value = titleOf(conversation);
  if ((await openDialog("rename-dialog")) !== "yes") return;
  conversation.title = byId("rename-field").value.trim();
  await chat.save(conversation);
}

const fileName = (title) => `${title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50)}.json`;

async function saveAll() {
  download("conversations.json", await exportConversations(conversations, store));
}

async function loadFile(file) {
  try {
    const found = await importConversations(await file.text(), store);
    conversations.push(...found);
    notify(found.length === 1 ? "1 conversation added." : `${found.length} conversations added.`);
    if (found.length) show(found[0]);
  } catch (error) {
    reportError(error);
  }
}

async function clearAll() {
  if (!(await confirm("Delete all conversations in this browser?", "Delete all"))) return;
  conversations.forEach((one) => chat.forget(one));
  await store.clear();
  conversations = [];
  show(newConversation());
  await showStorage(store);
}

// a part of an attachment becomes a picture of the next question
async function addPart(choosing) {
  try {
    const part = await choosing;
    if (!part) return;
    const found = await readFile(part.blob, part.name);
    await composer.add(found.attachment, found.blob);
    byId("question").focus();
  } catch (error) {
    reportError(error);
  }
}

// what one picture may cost, where the server says it
function budget() {
  if (!model?.min_pixels || !model?.max_pixels) return null;
  const most = Math.min(settings.max_pixels ?? model.max_pixels, model.max_pixels);
  return { min_pixels: Math.min(model.min_pixels, most), max_pixels: most };
}

async function askForKey(wasWrong) {
  byId("key-wrong").hidden = !wasWrong;
  byId("key-field").value = "";
  if ((await openDialog("key-dialog")) !== "yes") return false;
  setKey(byId("key-field").value.trim());
  return true;
}

// the model that is served; keeps trying while the server does not answer
async function connect() {
  try {
    models = await readModels();
    model = models.find((one) => one.id === settings.model) ?? models[0];
    byId("offline").hidden = true;
    composer.show();
    showModel();
    return model;
  } catch (error) {
    byId("offline").hidden = false;
    byId("offline-reason").textContent = error.message;
    const again = () => model ?? connect().catch(() => {});
    if (error.status !== 401) setTimeout(again, RETRY_SECONDS * 1000);
    throw error;
  }
}

// its name, and how much of its context the conversation takes
function showModel() {
  if (!model) return;
  const used = last("assistant")?.usage?.total_tokens;
  const length = model.max_model_len;
  const context = used && length ? ` · ${count(used)} of ${count(length)} tokens` : "";
  byId("model").textContent = `${model.id}${context}`;
}

async function askExample(button) {
  const { picture, question } = button.dataset;
  const blob = await (await fetch(new URL(`page/examples/${picture}`, document.baseURI))).blob();
  const found = await readFile(blob, picture);
  await store.saveFile({ id: found.attachment.file, blob: found.blob });
  await chat.ask({ text: question, attachments: [found.attachment], edited: null });
}

function last(role) {
  return pathOf(chat.conversation).findLast((node) => node.role === role);
}

function editLast() {
  const question = last("user");
  if (question) composer.edit(question);
}

const showSettings = () =>
  openSettings(settings, chat.conversation, store, models, () => {
    model = models.find((one) => one.id === settings.model) ?? models[0] ?? null;
    showModel();
    byId("system-mark").hidden = !chat.conversation.system;
    if (Object.keys(chat.conversation.nodes).length) chat.save(chat.conversation);
    composer.show();
  });
const copyAll = () => copyText(toMarkdown(chat.conversation), byId("copy-all"));
const escape = () => {
  if (document.body.classList.contains("with-sidebar")) showSidebar(false);
  else if (chat.isRunning) chat.stop();
  else composer.endEdit();
};

// in a narrow window it lies over the page
function showSidebar(isShown) {
  document.body.classList.toggle("with-sidebar", isShown);
  byId("menu").setAttribute("aria-expanded", String(isShown));
  if (isShown) byId("new").focus();
  else byId("menu").focus();
}

const buttons = {
  "new": () => show(newConversation()),
  "new-top": () => show(newConversation()),
  "menu": () => showSidebar(true),
  "shade": () => showSidebar(false),
  "settings": showSettings,
  "shortcuts": () => openDialog("shortcuts-dialog"),
  "copy-all": copyAll,
  "export": saveAll,
  "import": () => byId("import-file").click(),
  "clear": clearAll,
  "reconnect": () => connect().catch(() => {}),
};
for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);
for (const button of document.querySelectorAll("#empty button")) {
  button.addEventListener("click", () => askExample(button).catch(reportError));
}
byId("search").addEventListener("input", changed);
byId("import-file").addEventListener("change", (event) => {
  if (event.target.files[0]) loadFile(event.target.files[0]);
  event.target.value = "";
});
listenForFiles((files) => composer.addFiles(files));
listen({
  KeyN: buttons.new,
  KeyS: showSettings,
  KeyU: () => byId("files").click(),
  KeyR: () => last("assistant") && chat.regenerate(last("assistant")),
  KeyC: () => last("assistant") && copyText(last("assistant").text, byId("copy-all")),
  KeyE: editLast,
  Slash: buttons.shortcuts,
}, escape, editLast);

// an answer that was cut off by closing the page
for (const node of conversations.flatMap((one) => Object.values(one.nodes))) {
  if (node.state === "running") node.state = "stopped";
}
show(conversations.find((one) => one.id === sessionStorage.getItem(OPEN)) ?? newConversation());
if (!store.isLasting) notify("This browser stores nothing: conversations are lost with the page.");
await store.sweep();
connect().catch(() => {});
