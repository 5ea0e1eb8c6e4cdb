// Makes calls with an official SDK for Node that meet limits, and prints when the SDK sent what.
//
//   MODEL=… CASES='[{"name": …, "base_url": …, "key": …}]' SLUICE_TEST_NODE_MODULES=…/node_modules \
//     node limits.mjs [openai|openai-v6|@anthropic-ai/sdk|anthropic-v0]
//
// All cases run at once. One line of JSON comes out, whatever the SDK threw; README.md beside this
// file lists its fields. Each refusal is told on the error output as it comes. The exit code is 0
// when a report was printed. What is right is judged by the caller.

import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";

const MESSAGES = [{ role: "user", content: "Say hello." }];
const PACKAGES = ["openai", "openai-v6", "@anthropic-ai/sdk", "anthropic-v0"];

function requiredEnv(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

function number(text) {
  return text === null ? null : Number.parseFloat(text);
}

// One call, with every request that the SDK makes for it.
async function call(sdk, item, model) {
  const tries = [];
  const noting = async (url, init) => {
    const one = { sent_ms: performance.now() };
    tries.push(one);
    const response = await fetch(url, init);
    one.answered_ms = performance.now();
    one.status = response.status;
    one.retry_after_ms = number(response.headers.get("retry-after-ms"));
    one.retry_after = number(response.headers.get("retry-after"));
    one.should_retry = response.headers.get("x-should-retry");
    if (response.status === 429) process.stderr.write(`refused ${item.name}\n`);
    return response;
  };
  const Client = sdk.OpenAI ?? sdk.Anthropic;
  const client = new Client({
    baseURL: item.base_url,
    apiKey: item.key,
    defaultHeaders: item.headers ?? {},
    maxRetries: item.max_retries ?? 2,
    fetch: noting,
  });
  const create = () =>
    sdk.OpenAI
      ? client.chat.completions.create({ model, messages: MESSAGES })
      : client.messages.create({ model, messages: MESSAGES, max_tokens: 64 });
  let error = null;
  try {
    for (let left = item.before ?? 0; left > 0; left -= 1) {
      await create();
      tries.length = 0;
    }
    await create();
  } catch (thrown) {
    // Whatever the SDK lets through is a finding for the caller.
    const name = thrown?.constructor?.name ?? typeof thrown;
    error = { class: name, message: String(thrown?.message ?? thrown) };
  }
  return { name: item.name, tries, error };
}

async function main() {
  const [packageName] = process.argv.slice(2);
  if (!PACKAGES.includes(packageName)) {
    process.stderr.write(`usage: limits.mjs ${PACKAGES.join("|")}\n`);
    return 2;
  }
  // Modules are looked up beside a file; the SDKs lie elsewhere, so the look-up starts there.
  const require = createRequire(path.join(requiredEnv("SLUICE_TEST_NODE_MODULES"), "index.js"));
  const sdk = require(packageName);
  const model = requiredEnv("MODEL");
  const cases = JSON.parse(requiredEnv("CASES"));
  const report = {
    sdk: packageName,
    sdk_version: require(`${packageName}/version`).VERSION,
    calls: await Promise.all(cases.map((item) => call(sdk, item, model))),
  };
  process.stdout.write(`${JSON.stringify(report)}\n`);
  return 0;
}

process.exitCode = await main();
