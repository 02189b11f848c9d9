// Settings of all requests, kept in the browser; the system message belongs to its conversation.

import { forgetKey, hasKey } from "./api.js";
import { byId, element, openDialog } from "./dom.js";
import { megabytes } from "./media.js";
import { OPTIONS } from "./request.js";
import { MAX_BYTES } from "./store.js";

const NAME = "qwen25vl-settings";

export function readSettings() {
  const settings = Object.fromEntries(OPTIONS.map((name) => [name, null]));
  try {
    const stored = JSON.parse(localStorage.getItem(NAME) ?? "{}");
    for (const name of OPTIONS) if (typeof stored[name] === "number") settings[name] = stored[name];
    settings.model = typeof stored.model === "string" ? stored.model : null;
    settings.theme = ["light", "dark"].includes(stored.theme) ? stored.theme : "system";
  } catch {
    settings.theme = "system";
  }
  return settings;
}

function writeSettings(settings) {
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // a browser that stores nothing: they hold until the page is closed
  }
}

export function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

// Shows them; each change holds at once. models: as /v1/models lists them. changed(): the system
// message or a setting is another.
export async function openSettings(settings, conversation, store, models, changed) {
  showModels(models, settings, changed);
  const system = byId("system");
  system.value = conversation.system;
  system.oninput = () => {
    conversation.system = system.value.trim();
    changed();
  };
  for (const name of OPTIONS) {
    const field = byId(`option-${name}`);
    field.value = settings[name] ?? "";
    field.oninput = () => {
      const isValid = field.checkValidity();
      field.setAttribute("aria-invalid", String(!isValid));
      if (!isValid) return;
      settings[name] = field.value === "" ? null : Number(field.value);
      writeSettings(settings);
      changed();
    };
  }
  for (const button of document.getElementsByName("theme")) {
    button.checked = button.value === settings.theme;
    button.onchange = () => {
      settings.theme = button.value;
      applyTheme(settings.theme);
      writeSettings(settings);
    };
  }
  byId("defaults").onclick = () => {
    for (const name of OPTIONS) {
      byId(`option-${name}`).value = "";
      byId(`option-${name}`).removeAttribute("aria-invalid");
      settings[name] = null;
    }
    writeSettings(settings);
    changed();
  };
  showKey();
  showStorage(store);
  await openDialog("settings-dialog");
}

// a server may have adapters beside the model, and several names for it
function showModels(models, settings, changed) {
  const choice = byId("model-choice");
  byId("model-field").hidden = models.length < 2;
  choice.replaceChildren(...models.map((one) => element("option", { value: one.id }, one.id)));
  choice.value = models.some((one) => one.id === settings.model) ? settings.model : models[0]?.id;
  choice.onchange = () => {
    settings.model = choice.value;
    writeSettings(settings);
    changed();
  };
}

function showKey() {
  byId("key-section").hidden = !hasKey();
  byId("forget-key").onclick = () => {
    forgetKey();
    byId("key-section").hidden = true;
  };
}

export async function showStorage(store) {
  const line = byId("storage");
  if (!store.isLasting) {
    line.textContent = "This browser stores nothing: conversations are lost with the page.";
    return;
  }
  try {
    const used = megabytes(await store.bytes());
    line.textContent = `${used} of ${megabytes(MAX_BYTES)} MB in this browser, on this computer.`;
  } catch (error) {
    line.textContent = `The conversations cannot be read: ${error.message}`;
  }
}
