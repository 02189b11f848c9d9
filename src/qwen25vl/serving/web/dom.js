// Building the page's elements. Text always becomes a text node; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

// element("button", {class: "plain", onclick: f, "aria-label": "Stop"}, "Stop", icon("stop"))
// Properties that start with "on" are listeners; true sets an empty attribute, false, null and
// undefined leave it out.
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// a drawing of icons.svg's kind, from the symbols at the top of index.html
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  drawing.append(use);
  return drawing;
}

// a button that shows only an icon; its name is its tooltip and what a screen reader says
export function iconButton(name, label, onclick, properties = {}) {
  const { class: extra = "", ...others } = properties;
  const names = { title: label, "aria-label": label };
  const given = { type: "button", class: `icon-button ${extra}`, ...names, onclick };
  return element("button", { ...given, ...others }, icon(name));
}

export function textButton(label, onclick, properties = {}) {
  return element("button", { type: "button", class: "button", onclick, ...properties }, label);
}

export const byId = (id) => document.getElementById(id);

// says something to screen readers without showing it
export function announce(text) {
  const status = byId("status");
  status.textContent = status.textContent === text ? `${text}\u00a0` : text; // a change is heard
}

export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// a dialog of index.html, opened; resolves when it is closed, with its return value
export function openDialog(id) {
  const dialog = byId(id);
  dialog.onclick = (event) => {
    const isOutside = event.target === dialog; // the backdrop belongs to it, all else to its form
    if (isOutside || event.target.closest("[data-close]")) dialog.close("");
  };
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}

export async function copyText(text, button) {
  const label = button.getAttribute("aria-label") ?? button.textContent;
  try {
    await writeClipboard(text);
    announce("Copied.");
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  } catch (error) {
    announce(`Not copied: ${error.message}`);
    button.setAttribute("title", `${label}: the browser did not allow it`);
  }
}

// the clipboard proper exists only on https and localhost; elsewhere a hidden field is copied
async function writeClipboard(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = element("textarea", { class: "hidden", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  if (!isCopied) throw new Error("the browser did not allow it");
}
