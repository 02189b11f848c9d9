// The server: requests, the key, events of a stream, errors.

const BASE = new URL(".", location.href); // so the page also works behind a prefix
const KEY = "qwen25vl-key"; // in sessionStorage: gone when the tab is closed

export class ServerError extends Error {
  // status 0: there was no answer, or it was cut off. retryAfter: seconds, or null
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

let promptForKey = async () => false;
let prompting = null; // one question at a time, however many requests wait for its answer

// prompt(wasWrong): asks for the key and sets it; false if the person does not give one
export function setKeyPrompt(prompt) {
  promptForKey = prompt;
}

// asks for the key as often as the server wants another
async function request(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    try {
      return await send(path, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      const isNew = sessionStorage.getItem(KEY) !== used;
      if (isNew) continue;
      prompting ??= promptForKey(used !== null).finally(() => {
        prompting = null;
      });
      if (!(await prompting)) throw error;
    }
  }
}

async function send(path, options) {
  let reply;
  try {
    const given = { ...options, headers: headers(options.headers ?? {}) };
    reply = await fetch(new URL(path, BASE), { cache: "no-store", ...given });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
  if (!reply.ok) throw await errorOf(reply);
  return reply;
}

async function errorOf(reply) {
  let stated = null;
  try {
    stated = (await reply.json()).error;
  } catch {
    // not JSON, so not from this server: the status has to do
  }
  const after = Number(reply.headers.get("retry-after"));
  const message = stated?.message ?? `The server answered ${reply.status} ${reply.statusText}.`;
  const retryAfter = after > 0 ? Math.min(after, 120) : null;
  return new ServerError(message, { status: reply.status, code: stated?.code ?? null, retryAfter });
}

// [{id, max_model_len, …}]: the model that is served under its names, and its adapters
export async function readModels() {
  const list = await (await request("v1/models")).json();
  if (!list.data?.length) throw new ServerError("The server has no model.");
  return list.data;
}

// {num_pages, pages: [{number, width, height, image?}]}: all pages with sizes in points and small
// pictures of the first ones, or one page with a large picture
export async function readPdf(blob, page = null) {
  const type = { "content-type": "application/pdf" };
  const path = page === null ? "page/pdf" : `page/pdf?page=${page}`;
  return (await request(path, { method: "POST", headers: type, body: blob })).json();
}

// The chunks of an answer as they arrive. Ends with an error where the connection was cut: a stream
// that is whole says [DONE].
export async function* streamChat(body, signal, onSign) {
  const type = { "content-type": "application/json", accept: "text/event-stream" };
  const sent = { method: "POST", headers: type, body: JSON.stringify(body), signal };
  const reply = await request("v1/chat/completions", sent);
  for await (const data of readEvents(reply.body, onSign)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { status: 200, ...chunk.error });
    yield chunk;
  }
  throw new ServerError("The connection was cut before the answer was complete.");
}

// What follows "data:" in each event. Comments only tell that the server is alive (onSign).
export async function* readEvents(stream, onSign = () => {}) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await readPart(reader);
      if (done) return;
      onSign();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection, which stops the server's work
  }
}

async function readPart(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection was cut before the answer was complete.");
  }
}
