// Makes calls with the official OpenAI SDK for Node and prints what the SDK saw.
//
//   BASE_URL=http://127.0.0.1:8000/v1 API_KEY=… MODEL=… SLUICE_TEST_NODE_MODULES=…/node_modules \
//     node chat.mjs CASE [openai|openai-v6]
//
// One line of JSON comes out for each call, whatever the SDK threw; README.md beside this
// file lists its fields. `many` for CASE makes those that the file in CALLS lists.
// The exit code is 0 when all reports were printed. What is right is judged by the caller.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";

const MESSAGES = [{ role: "user", content: "Say hello." }];
// Larger than the body limits that web frameworks and proxies come with (1 to 2 MiB).
const LARGE_PROMPT_BYTES = 3 * 1024 * 1024;

function recordUsage(report, usage) {
  if (usage !== undefined && usage !== null) report.usage = usage;
}

function recordError(report, error) {
  report.error = {
    class: error?.constructor?.name ?? typeof error,
    status: error?.status ?? null,
    code: error?.code ?? null,
    type: error?.type ?? null,
    param: error?.param ?? null,
    request_id: error?.requestID ?? null,
    message: String(error?.message ?? error),
  };
}

function beginStream(report) {
  report.content = "";
  report.chunks = 0;
  report.chunks_without_choices = 0;
  report.chunks_with_usage = 0;
}

function recordChunk(report, chunk) {
  report.chunks += 1;
  if (chunk.choices.length === 0) report.chunks_without_choices += 1;
  if (chunk.usage) {
    report.chunks_with_usage += 1;
    recordUsage(report, chunk.usage);
  }
  for (const choice of chunk.choices) {
    // Chat chunks carry a delta, completion chunks carry text.
    report.content += (choice.delta ? choice.delta.content : choice.text) ?? "";
    if (choice.finish_reason) report.finish_reason = choice.finish_reason;
  }
}

function recordCompletion(report, completion) {
  const [choice] = completion.choices;
  report.content = choice.message ? choice.message.content : choice.text;
  if (choice.message) {
    report.tool_calls = (choice.message.tool_calls ?? []).map((call) => ({
      id: call.id,
      type: call.type,
      name: call.function.name,
      arguments: call.function.arguments,
    }));
  }
  report.finish_reason = choice.finish_reason;
  report.model = completion.model;
  recordUsage(report, completion.usage);
}

async function chat(client, model, report, extra = {}) {
  const body = { model, messages: MESSAGES, ...extra };
  recordCompletion(report, await client.chat.completions.create(body));
}

async function chatStream(client, model, report, extra = {}) {
  beginStream(report);
  const body = { model, messages: MESSAGES, stream: true, ...extra };
  const stream = await client.chat.completions.create(body);
  for await (const chunk of stream) recordChunk(report, chunk);
}

// The helper accumulates the chunks by itself and is stricter than the raw iterator.
async function chatHelper(client, model, report, extra = {}) {
  beginStream(report);
  const stream = client.chat.completions.stream({ model, messages: MESSAGES, ...extra });
  for await (const chunk of stream) recordChunk(report, chunk);
  const final = await stream.finalChatCompletion();
  report.final_role = final.choices[0].message.role;
  recordCompletion(report, final);
}

async function completionStream(client, model, report) {
  beginStream(report);
  const stream = await client.completions.create({ model, prompt: "Say hello.", stream: true });
  for await (const chunk of stream) recordChunk(report, chunk);
}

// Without `encoding_format` the SDK asks for base64 and decodes it.
async function embedding(client, model, report, extra = {}) {
  const answer = await client.embeddings.create({ model, input: ["one", "two"], ...extra });
  report.vectors = answer.data.map((item) => Array.from(item.embedding));
  report.model = answer.model;
  recordUsage(report, answer.usage);
}

const INCLUDE_USAGE = { stream_options: { include_usage: true } };

const CASES = {
  chat,
  chat_large: (client, model, report) => {
    const prompt = "lorem ipsum ".repeat(LARGE_PROMPT_BYTES / 12 + 1).slice(0, LARGE_PROMPT_BYTES);
    return chat(client, model, report, { messages: [{ role: "user", content: prompt }] });
  },
  // A value that no provider takes and a field that no SDK knows.
  chat_extra: (client, model, report) =>
    chat(client, model, report, { temperature: 99, vendor_option: { nested: [1, 2.5, null] } }),
  chat_stream: chatStream,
  chat_stream_usage: (client, model, report) => chatStream(client, model, report, INCLUDE_USAGE),
  chat_helper: chatHelper,
  chat_helper_usage: (client, model, report) => chatHelper(client, model, report, INCLUDE_USAGE),
  completion: async (client, model, report) =>
    recordCompletion(report, await client.completions.create({ model, prompt: "Say hello." })),
  completion_stream: completionStream,
  embedding,
  embedding_float: (client, model, report) =>
    embedding(client, model, report, { encoding_format: "float" }),
  models: async (client, _model, report) => {
    report.models = [];
    for await (const item of client.models.list()) report.models.push(item.id);
  },
  // A slash in the id travels as `%2F`.
  model: async (client, model, report) => {
    report.model = (await client.models.retrieve(model)).id;
  },
};

function requiredEnv(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

// The calls of `many`, a line `CASE MODEL` for each, or the only one.
function readCalls(name) {
  if (name !== "many") return [[name, requiredEnv("MODEL")]];
  const lines = readFileSync(requiredEnv("CALLS"), "utf8").trim().split("\n");
  return lines.map((line) => line.split(" "));
}

async function main() {
  const [name, packageName = "openai"] = process.argv.slice(2);
  if (name !== "many" && !Object.hasOwn(CASES, name ?? "")) {
    const cases = Object.keys(CASES).join("|");
    process.stderr.write(`usage: chat.mjs many|${cases} [openai|openai-v6]\n`);
    return 2;
  }
  // Modules are looked up beside a file; the SDKs lie elsewhere, so the look-up starts there.
  const require = createRequire(path.join(requiredEnv("SLUICE_TEST_NODE_MODULES"), "index.js"));
  const { OpenAI } = require(packageName);
  let report;
  const countingFetch = async (url, init) => {
    report.attempts += 1;
    const response = await fetch(url, init);
    report.http_status = response.status;
    report.request_id = response.headers.get("x-request-id");
    return response;
  };
  const client = new OpenAI({
    baseURL: requiredEnv("BASE_URL"),
    apiKey: requiredEnv("API_KEY"),
    fetch: countingFetch,
  });
  for (const [called, model] of readCalls(name)) {
    report = {
      sdk: "openai-node",
      sdk_version: require(`${packageName}/version`).VERSION,
      case: called,
      attempts: 0,
      http_status: null,
      request_id: null,
      content: null,
      finish_reason: null,
      usage: null,
      error: null,
    };
    try {
      await CASES[called](client, model, report);
    } catch (error) {
      // Whatever the SDK lets through is a finding for the caller.
      recordError(report, error);
    }
    process.stdout.write(`${JSON.stringify(report)}\n`);
  }
  return 0;
}

process.exitCode = await main();
