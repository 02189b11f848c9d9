// Short messages at the foot of the page, and questions with two answers.

import { byId, element, iconButton, openDialog } from "./dom.js";

const SHOWN_SECONDS = 8;

// An error stays until it is closed: it may be read late, or by a screen reader.
export function notify(message, { isError = false } = {}) {
  const close = iconButton("close", "Close this message", () => notice.remove());
  const properties = isError
    ? { class: "notice error", role: "alert" }
    : { class: "notice", role: "status" };
  const notice = element("div", properties, message, close);
  byId("notices").append(notice);
  if (!isError) setTimeout(() => notice.remove(), SHOWN_SECONDS * 1000);
}

export const reportError = (error) => notify(error.message, { isError: true });

// whether the person agreed; `action` names what the button does
export async function confirm(question, action) {
  byId("confirm-question").textContent = question;
  byId("confirm-action").textContent = action;
  return (await openDialog("confirm-dialog")) === "yes";
}
