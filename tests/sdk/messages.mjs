// Makes calls with the official Anthropic SDK for Node and prints what the SDK saw.
//
//   BASE_URL=http://127.0.0.1:8000 API_KEY=… MODEL=… SLUICE_TEST_NODE_MODULES=…/node_modules \
//     node messages.mjs CASE [@anthropic-ai/sdk|anthropic-v0]
//
// One line of JSON comes out for each call, whatever the SDK threw; README.md beside this
// file lists its fields. `many` for CASE makes those that the file in CALLS lists.
// The exit code is 0 when all reports were printed. What is right is judged by the caller.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";

const MESSAGES = [{ role: "user", content: "Say hello." }];
const CALL = { max_tokens: 1024, messages: MESSAGES };

function recordError(report, error) {
  report.error = {
    class: error?.constructor?.name ?? typeof error,
    status: error?.status ?? null,
    // What the SDK itself makes of it; else the body that it hands on.
    type: error?.type ?? error?.error?.error?.type ?? null,
    code: error?.error?.error?.details?.error_code ?? null,
    request_id: error?.requestID ?? null,
    message: String(error?.message ?? error),
  };
}

function recordMessage(report, message) {
  report.content = message.content.map((block) => block.text).join("");
  report.stop_reason = message.stop_reason;
  report.model = message.model;
  report.usage = message.usage;
}

function recordEvent(report, event) {
  report.events.push(event.type);
  if (event.type === "content_block_delta") report.content += event.delta.text;
  if (event.type === "message_delta") report.stop_reason = event.delta.stop_reason;
}

const CASES = {
  message: async (client, model, report) =>
    recordMessage(report, await client.messages.create({ model, ...CALL })),
  // Posts to `/v1/messages?beta=true` with `anthropic-beta`, as Claude Code does.
  message_beta: async (client, model, report) => {
    const betas = ["context-management-2025-06-27"];
    recordMessage(report, await client.beta.messages.create({ model, betas, ...CALL }));
  },
  message_stream: async (client, model, report) => {
    report.content = "";
    report.events = [];
    const stream = await client.messages.create({ model, stream: true, ...CALL });
    for await (const event of stream) recordEvent(report, event);
  },
  // The helper accumulates the events by itself and is stricter than the raw iterator.
  message_helper: async (client, model, report) => {
    report.content = "";
    report.events = [];
    const stream = client.messages.stream({ model, ...CALL });
    for await (const event of stream) recordEvent(report, event);
    recordMessage(report, await stream.finalMessage());
  },
  count: async (client, model, report) => {
    const answer = await client.messages.countTokens({ model, messages: MESSAGES });
    report.input_tokens = answer.input_tokens;
  },
  models: async (client, _model, report) => {
    report.models = [];
    for await (const item of client.models.list()) report.models.push(item.id);
  },
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
  const [name, packageName = "@anthropic-ai/sdk"] = process.argv.slice(2);
  if (name !== "many" && !Object.hasOwn(CASES, name ?? "")) {
    const cases = Object.keys(CASES).join("|");
    process.stderr.write(`usage: messages.mjs many|${cases} [@anthropic-ai/sdk|anthropic-v0]\n`);
    return 2;
  }
  // Modules are looked up beside a file; the SDKs lie elsewhere, so the look-up starts there.
  const require = createRequire(path.join(requiredEnv("SLUICE_TEST_NODE_MODULES"), "index.js"));
  const { Anthropic } = require(packageName);
  let report;
  const countingFetch = async (url, init) => {
    report.attempts += 1;
    const response = await fetch(url, init);
    report.http_status = response.status;
    report.request_id = response.headers.get("request-id");
    return response;
  };
  const client = new Anthropic({
    baseURL: requiredEnv("BASE_URL"),
    apiKey: requiredEnv("API_KEY"),
    fetch: countingFetch,
  });
  for (const [called, model] of readCalls(name)) {
    report = {
      sdk: "anthropic-node",
      sdk_version: require(`${packageName}/version`).VERSION,
      case: called,
      attempts: 0,
      http_status: null,
      request_id: null,
      content: null,
      stop_reason: null,
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
