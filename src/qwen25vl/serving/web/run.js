// One answer: the request, its tries, and what arrives, written into the node of the answer.

import { ServerError, streamChat } from "./api.js";

const MAX_TRIES = 5;
const DEFAULT_WAIT = 3; // seconds, where a busy server does not say how long
const BUSY = [429, 503];

// on: {text(delta), stage(stage), waiting({seconds, tryAt, message})}; returns when the answer is
// over, whatever ended it; the node says how.
export async function runAnswer(node, makeBody, signal, on) {
  const started = performance.now();
  try {
    const body = await makeBody();
    await withTries(() => readAnswer(node, body, signal, on), signal, on);
    node.state = node.finish === "length" ? "cut" : "done";
  } catch (error) {
    if (error.name === "AbortError") node.state = "stopped";
    else {
      node.state = "failed";
      node.error = { message: error.message, status: error.status ?? 0, code: error.code ?? null };
    }
  }
  node.seconds = (performance.now() - started) / 1000;
}

async function withTries(attempt, signal, on) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!BUSY.includes(error.status) || tries === MAX_TRIES) throw error;
      const seconds = error.retryAfter ?? DEFAULT_WAIT * 2 ** (tries - 1);
      on.waiting({ seconds, message: error.message });
      await pause(seconds, signal);
      on.stage({ stage: "sending" });
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

async function readAnswer(node, body, signal, on) {
  for await (const chunk of streamChat(body, signal, on.sign)) {
    if (chunk.progress) on.stage(chunk.progress);
    if (chunk.usage) node.usage = chunk.usage;
    if (chunk.timings) node.timings = chunk.timings;
    const choice = chunk.choices?.[0];
    if (choice) readChoice(node, choice, chunk, on);
  }
  if (!node.finish) throw new ServerError("The server ended the answer without a reason.");
}

// `media`, `boxes` and `points` come with the reason of the end
function readChoice(node, choice, chunk, on) {
  const delta = choice.delta?.content;
  if (delta) {
    node.text += delta;
    on.text(delta);
  }
  if (!choice.finish_reason) return;
  node.finish = choice.finish_reason;
  for (const name of ["media", "boxes", "points"]) {
    const found = choice[name] ?? choice.delta?.[name] ?? chunk[name];
    if (found) node[name] = found;
  }
}
