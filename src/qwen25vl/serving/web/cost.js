// What a message cost, in words.

import { element } from "./dom.js";

const STAGES = {
  sending: "Sending",
  queued: "Waiting for its turn",
  images: "Looking at the pictures",
  videos: "Watching the clip",
  prefill: "Reading the prompt",
  writing: "Writing",
};

export const count = (number) => number.toLocaleString("en");

export function seconds(number) {
  if (number < 10) return `${number.toFixed(1)} s`;
  if (number < 100) return `${Math.round(number)} s`;
  return `${Math.floor(number / 60)} min ${Math.round(number % 60)} s`;
}

export function stageText({ stage, done, total }) {
  const name = STAGES[stage] ?? stage;
  const hasTotal = total > 0 && stage !== "queued";
  if (stage === "queued" && done > 0) return `${name}, ${count(done)} before this one`;
  return hasTotal ? `${name}, ${count(done)} of ${count(total)}` : name;
}

// one line, and the rest behind it
export function costLine(node) {
  if (node.state === "failed" && !node.usage) return element("span");
  const facts = summary(node);
  const rows = details(node);
  const summaryLine = element("summary", {}, facts.join(" · "));
  if (!rows.length) return element("p", { class: "cost" }, facts.join(" · "));
  const cells = rows.flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, value),
  ]);
  return element("details", { class: "cost" }, summaryLine, element("dl", {}, cells));
}

function summary({ usage, timings, seconds: taken, state }) {
  const facts = [];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const share = cached ? ` (${count(cached)} cached)` : "";
    facts.push(`${count(usage.prompt_tokens)} tokens in${share}`);
    facts.push(`${count(usage.completion_tokens)} out`);
  }
  if (taken !== undefined) facts.push(seconds(taken));
  if (timings?.tokens_per_second) facts.push(`${timings.tokens_per_second.toFixed(1)} tokens/s`);
  if (state === "cut") facts.push("cut at the token limit");
  if (state === "stopped") facts.push("stopped");
  return facts;
}

function details({ usage, timings, media }) {
  const found = [];
  const parts = usage?.prompt_tokens_details ?? {};
  const tokens = [
    ["Text tokens", parts.text_tokens],
    ["Picture tokens", parts.image_tokens],
    ["Clip tokens", parts.video_tokens],
    ["Taken from the cache", parts.cached_tokens],
  ];
  const times = [
    ["Preparing media", timings?.preprocess],
    ["Vision encoder", timings?.vision],
    ["Reading the prompt", timings?.prefill],
    ["Writing the answer", timings?.decode],
  ];
  for (const [name, value] of tokens) if (value > 0) found.push([name, count(value)]);
  for (const [name, value] of times) if (value > 0) found.push([name, `${value.toFixed(2)} s`]);
  return [...found, ...(media ?? []).map(mediumRow)];
}

function mediumRow(medium, index) {
  const { name, page, original_size: given, model_size: seen, num_tokens: used } = medium;
  const shown = page ? `${name}, page ${page}` : name;
  const kind = medium.kind === "video" ? "Clip" : "Picture";
  const sizes = given && seen ? `${given[1]}×${given[0]} seen as ${seen[1]}×${seen[0]}, ` : "";
  return [shown || `${kind} ${index + 1}`, `${sizes}${count(used)} tokens`];
}
