"""Makes calls with the official Anthropic SDK for Python and prints what the SDK saw.

    BASE_URL=http://127.0.0.1:8000 API_KEY=… MODEL=… python messages.py CASE
    BASE_URL=… API_KEY=… CALLS=FILE python messages.py many

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

import anthropic

MESSAGES = [{"role": "user", "content": "Say hello."}]
CALL = {"max_tokens": 1_024, "messages": MESSAGES}

Report = dict[str, Any]
# The case and the model of each.
Calls = list[tuple[str, str]]

# A busy machine may take longer to connect than the five seconds after which the SDK tries again.
PATIENCE = anthropic.Timeout(600, connect=60)


def new_report(case: str) -> Report:
    return {
        "sdk": "anthropic-python",
        "sdk_version": anthropic.__version__,
        "case": case,
        "attempts": 0,
        "http_status": None,
        "request_id": None,
        "content": None,
        "stop_reason": None,
        "usage": None,
        "error": None,
    }


def record_error(report: Report, error: BaseException) -> None:
    report["error"] = {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "type": getattr(error, "type", None),
        "code": getattr(error, "error_code", None),
        "request_id": getattr(error, "request_id", None),
        "message": str(error),
    }


def record_message(report: Report, message: Any) -> None:
    report["content"] = "".join(block.text for block in message.content)
    report["stop_reason"] = message.stop_reason
    report["model"] = message.model
    report["usage"] = message.usage.model_dump(exclude_none=True)


def record_event(report: Report, event: Any) -> None:
    report["events"].append(event.type)
    if event.type == "content_block_delta":
        report["content"] += event.delta.text
    if event.type == "message_delta":
        report["stop_reason"] = event.delta.stop_reason


def begin_stream(report: Report) -> None:
    report["content"] = ""
    report["events"] = []


def message(client: anthropic.Anthropic, model: str, report: Report) -> None:
    record_message(report, client.messages.create(model=model, **CALL))


def message_beta(client: anthropic.Anthropic, model: str, report: Report) -> None:
    """Posts to `/v1/messages?beta=true` with `anthropic-beta`, as Claude Code does."""
    answer = client.beta.messages.create(
        model=model, betas=["context-management-2025-06-27"], **CALL
    )
    record_message(report, answer)


def message_stream(client: anthropic.Anthropic, model: str, report: Report) -> None:
    begin_stream(report)
    for event in client.messages.create(model=model, stream=True, **CALL):
        record_event(report, event)


def message_helper(client: anthropic.Anthropic, model: str, report: Report) -> None:
    """The helper accumulates the events by itself and is stricter than the raw iterator."""
    report["content"] = ""
    with client.messages.stream(model=model, **CALL) as stream:
        for text in stream.text_stream:
            report["content"] += text
        record_message(report, stream.get_final_message())


def count(client: anthropic.Anthropic, model: str, report: Report) -> None:
    answer = client.messages.count_tokens(model=model, messages=MESSAGES)
    report["input_tokens"] = answer.input_tokens


def models(client: anthropic.Anthropic, _model: str, report: Report) -> None:
    report["models"] = [item.id for item in client.models.list()]


def model_by_id(client: anthropic.Anthropic, model: str, report: Report) -> None:
    report["model"] = client.models.retrieve(model).id


async def async_message_stream(
    client: anthropic.AsyncAnthropic, model: str, report: Report
) -> None:
    begin_stream(report)
    async for event in await client.messages.create(model=model, stream=True, **CALL):
        record_event(report, event)


CASES: dict[str, Callable[..., Any]] = {
    "message": message,
    "message_beta": message_beta,
    "message_stream": message_stream,
    "message_helper": message_helper,
    "count": count,
    "models": models,
    "model": model_by_id,
    "async_message_stream": async_message_stream,
}


def run_sync(calls: Calls, base_url: str, key: str) -> None:
    """Makes the calls one after the other with one client and prints a report for each."""
    report: Report = {}

    def on_request(_request: Any) -> None:
        report["attempts"] += 1

    def on_response(response: Any) -> None:
        report["http_status"] = response.status_code
        report["request_id"] = response.headers.get("request-id")

    http = anthropic.DefaultHttpxClient(
        event_hooks={"request": [on_request], "response": [on_response]}, timeout=PATIENCE
    )
    with anthropic.Anthropic(base_url=base_url, api_key=key, http_client=http) as client:
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
        report["request_id"] = response.headers.get("request-id")

    http = anthropic.DefaultAsyncHttpxClient(
        event_hooks={"request": [on_request], "response": [on_response]}, timeout=PATIENCE
    )
    async with anthropic.AsyncAnthropic(
        base_url=base_url, api_key=key, http_client=http
    ) as client:
        await case(client, model, report)


def read_calls(name: str) -> Calls:
    """Reads the calls of `many`, a line `CASE MODEL` for each, or returns the only one."""
    if name != "many":
        return [(name, os.environ["MODEL"])]
    with open(os.environ["CALLS"], encoding="utf-8") as lines:
        return [(case, model) for case, model in (line.split() for line in lines)]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in {"many", *CASES}:
        print(f"usage: messages.py many|{'|'.join(CASES)}", file=sys.stderr)
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
