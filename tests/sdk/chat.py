"""Makes calls with the official OpenAI SDK for Python and prints what the SDK saw.

    BASE_URL=http://127.0.0.1:8000/v1 API_KEY=… MODEL=… python chat.py CASE
    BASE_URL=… API_KEY=… CALLS=FILE python chat.py many

One line of JSON comes out for each call, whatever the SDK raised; README.md beside
this file lists its fields.
The exit code is 0 when all reports were printed. What is right is judged by the caller.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Callable

import openai

MESSAGES = [{"role": "user", "content": "Say hello."}]
FUNCTION_PARTS = {"name", "arguments"}
# Larger than the body limits that web frameworks and proxies come with (1 to 2 MiB).
LARGE_PROMPT_BYTES = 3 * 1024 * 1024

Report = dict[str, Any]
# The case and the model of each.
Calls = list[tuple[str, str]]

# A busy machine may take longer to connect than the five seconds after which the SDK tries again.
PATIENCE = openai.Timeout(600, connect=60)


def new_report(case: str) -> Report:
    return {
        "sdk": "openai-python",
        "sdk_version": openai.__version__,
        "case": case,
        "attempts": 0,
        "http_status": None,
        "request_id": None,
        "content": None,
        "finish_reason": None,
        "usage": None,
        "error": None,
    }


def record_usage(report: Report, usage: Any) -> None:
    """Keeps the wire names; `None` stays `None`."""
    if usage is not None:
        report["usage"] = usage.model_dump(exclude_none=True)


def record_error(report: Report, error: BaseException) -> None:
    report["error"] = {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "type": getattr(error, "type", None),
        "param": getattr(error, "param", None),
        "request_id": getattr(error, "request_id", None),
        "message": str(error),
    }


def record_chunk(report: Report, chunk: Any) -> None:
    report["chunks"] += 1
    if not chunk.choices:
        report["chunks_without_choices"] += 1
    if chunk.usage is not None:
        report["chunks_with_usage"] += 1
        record_usage(report, chunk.usage)
    for choice in chunk.choices:
        # Chat chunks carry a delta, completion chunks carry text.
        text = choice.delta.content if hasattr(choice, "delta") else choice.text
        report["content"] += text or ""
        if choice.finish_reason is not None:
            report["finish_reason"] = choice.finish_reason


def begin_stream(report: Report) -> None:
    report["content"] = ""
    report["chunks"] = 0
    report["chunks_without_choices"] = 0
    report["chunks_with_usage"] = 0


def record_completion(report: Report, completion: Any) -> None:
    choice = completion.choices[0]
    report["content"] = choice.message.content if hasattr(choice, "message") else choice.text
    if hasattr(choice, "message"):
        report["tool_calls"] = [
            {"id": call.id, "type": call.type, **call.function.model_dump(include=FUNCTION_PARTS)}
            for call in choice.message.tool_calls or []
        ]
        extra = choice.message.model_extra or {}
        report["reasoning"] = [extra.get("reasoning"), extra.get("reasoning_content")]
    report["finish_reason"] = choice.finish_reason
    report["model"] = completion.model
    record_usage(report, completion.usage)


def chat(client: openai.OpenAI, model: str, report: Report, **extra: Any) -> None:
    messages = extra.pop("messages", MESSAGES)
    record_completion(
        report, client.chat.completions.create(model=model, messages=messages, **extra)
    )


def chat_large(client: openai.OpenAI, model: str, report: Report) -> None:
    prompt = ("lorem ipsum " * (LARGE_PROMPT_BYTES // 12 + 1))[:LARGE_PROMPT_BYTES]
    chat(client, model, report, messages=[{"role": "user", "content": prompt}])


def chat_extra(client: openai.OpenAI, model: str, report: Report) -> None:
    """Sends a value that no provider takes and a field that no SDK knows."""
    chat(
        client,
        model,
        report,
        temperature=99,
        extra_body={"vendor_option": {"nested": [1, 2.5, None]}},
    )


def chat_stream(client: openai.OpenAI, model: str, report: Report, **extra: Any) -> None:
    begin_stream(report)
    for chunk in client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, **extra
    ):
        record_chunk(report, chunk)


def chat_stream_usage(client: openai.OpenAI, model: str, report: Report) -> None:
    chat_stream(client, model, report, stream_options={"include_usage": True})


def chat_helper(client: openai.OpenAI, model: str, report: Report, **extra: Any) -> None:
    """The helper accumulates the chunks by itself and is stricter than the raw iterator."""
    begin_stream(report)
    with client.chat.completions.stream(model=model, messages=MESSAGES, **extra) as stream:
        for event in stream:
            if event.type == "chunk":
                record_chunk(report, event.chunk)
        final = stream.get_final_completion()
    report["final_role"] = final.choices[0].message.role
    record_completion(report, final)


def chat_helper_usage(client: openai.OpenAI, model: str, report: Report) -> None:
    chat_helper(client, model, report, stream_options={"include_usage": True})


def completion(client: openai.OpenAI, model: str, report: Report) -> None:
    record_completion(report, client.completions.create(model=model, prompt="Say hello."))


def completion_stream(client: openai.OpenAI, model: str, report: Report) -> None:
    begin_stream(report)
    for chunk in client.completions.create(model=model, prompt="Say hello.", stream=True):
        record_chunk(report, chunk)


def embedding(client: openai.OpenAI, model: str, report: Report, **extra: Any) -> None:
    """Without `encoding_format` the SDK asks for base64 and decodes it."""
    answer = client.embeddings.create(model=model, input=["one", "two"], **extra)
    report["vectors"] = [item.embedding for item in answer.data]
    report["model"] = answer.model
    record_usage(report, answer.usage)


def embedding_float(client: openai.OpenAI, model: str, report: Report) -> None:
    embedding(client, model, report, encoding_format="float")


def models(client: openai.OpenAI, _model: str, report: Report) -> None:
    report["models"] = [item.id for item in client.models.list()]


def model_by_id(client: openai.OpenAI, model: str, report: Report) -> None:
    """A slash in the id travels as `%2F`."""
    report["model"] = client.models.retrieve(model).id


async def async_chat_stream(client: openai.AsyncOpenAI, model: str, report: Report) -> None:
    begin_stream(report)
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    async for chunk in stream:
        record_chunk(report, chunk)


CASES: dict[str, Callable[..., Any]] = {
    "chat": chat,
    "chat_large": chat_large,
    "chat_extra": chat_extra,
    "chat_stream": chat_stream,
    "chat_stream_usage": chat_stream_usage,
    "chat_helper": chat_helper,
    "chat_helper_usage": chat_helper_usage,
    "completion": completion,
    "completion_stream": completion_stream,
    "embedding": embedding,
    "embedding_float": embedding_float,
    "models": models,
    "model": model_by_id,
    "async_chat_stream": async_chat_stream,
}


def run_sync(calls: Calls, base_url: str, key: str) -> None:
    """Makes the calls one after the other with one client and prints a report for each."""
    report: Report = {}

    def on_request(_request: Any) -> None:
        report["attempts"] += 1

    def on_response(response: Any) -> None:
        report["http_status"] = response.status_code
        report["request_id"] = response.headers.get("x-request-id")

    http = openai.DefaultHttpxClient(
        event_hooks={"request": [on_request], "response": [on_response]}, timeout=PATIENCE
    )
    with openai.OpenAI(base_url=base_url, api_key=key, http_client=http) as client:
        for name, model in calls:
            report = new_report(name)
            try:
                CASES[name](client, model, report)
            except Exception as error:  # Whatever the SDK lets through is a finding for the caller.
                record_error(report, error)
            print(json.dumps(report), flush=True)


async def run_async(
    case: Callable[..., Any], report: Report, base_url: str, key: str, model: str
) -> None:
    async def on_request(_request: Any) -> None:
        report["attempts"] += 1

    async def on_response(response: Any) -> None:
        report["http_status"] = response.status_code
        report["request_id"] = response.headers.get("x-request-id")

    http = openai.DefaultAsyncHttpxClient(
        event_hooks={"request": [on_request], "response": [on_response]}, timeout=PATIENCE
    )
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, http_client=http) as client:
        await case(client, model, report)


def read_calls(name: str) -> Calls:
    """Reads the calls of `many`, a line `CASE MODEL` for each, or returns the only one."""
    if name != "many":
        return [(name, os.environ["MODEL"])]
    with open(os.environ["CALLS"], encoding="utf-8") as lines:
        return [(case, model) for case, model in (line.split() for line in lines)]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in {"many", *CASES}:
        print(f"usage: chat.py many|{'|'.join(CASES)}", file=sys.stderr)
        return 2
    name = sys.argv[1]
    target = (os.environ["BASE_URL"], os.environ["API_KEY"])
    if not asyncio.iscoroutinefunction(CASES.get(name)):
        run_sync(read_calls(name), *target)
        return 0
    report = new_report(name)
    try:
        asyncio.run(run_async(CASES[name], report, *target, os.environ["MODEL"]))
    except Exception as error:  # Whatever the SDK lets through is a finding for the caller.
        record_error(report, error)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
