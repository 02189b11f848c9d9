// openai-node and Anthropic's SDK: whole, streamed, by the helpers, and an error. Prints JSON.
import { createRequire } from "node:module";

const [folder, url, model, image, question] = process.argv.slice(2);
const require = createRequire(`${folder}/node_modules/`);
const { OpenAI } = require("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const content = [
  { type: "image_url", image_url: { url: image } },
  { type: "text", text: question },
];
const asked = { model, messages: [{ role: "user", content }], max_tokens: 24, temperature: 0 };
const found = { models: [] };
for await (const each of client.models.list()) found.models.push(each.id);
const whole = await client.chat.completions.create(asked);
found.whole = whole.choices[0].message.content;
found.usage = whole.usage.total_tokens;
found.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  found.streamed += chunk.choices[0].delta.content ?? "";
}
const runner = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
const final = await runner.finalChatCompletion();
found.helper = final.choices[0].message.content;
found.helperUsage = final.usage.total_tokens;
try {
  await client.chat.completions.create({ ...asked, temperature: 3 });
} catch (error) {
  found.error = [error.constructor.name, error.status, error.param];
}
const { Anthropic } = require("@anthropic-ai/sdk");
const other = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const source = { type: "base64", media_type: "image/png", data: image.split(",")[1] };
const blocks = [{ type: "image", source }, { type: "text", text: question }];
const request = { model, max_tokens: 24, messages: [{ role: "user", content: blocks }] };
const message = await other.messages.stream({ ...request, temperature: 0 }).finalMessage();
found.anthropic = message.content[0].text;
console.log(JSON.stringify(found));
