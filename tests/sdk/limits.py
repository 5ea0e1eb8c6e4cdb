"""Makes calls with an official SDK for Python that meet limits, and prints when the SDK sent what.

    MODEL=… CASES='[{"name": …, "base_url": …, "key": …}]' python limits.py [openai|anthropic]

All cases run at once. One line of JSON comes out, whatever the SDK raised; README.md beside this file
lists its fields. Each refusal is told on the error output as it comes. The exit code is 0 when a
report was printed. What is right is judged by the caller.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

MESSAGES = [{"role": "user", "content": "Say hello."}]

Report = dict[str, Any]


def now_ms() -> float:
    return time.monotonic() * 1000


def number(text: str | None) -> float | None:
    return None if text is None else float(text)


async def create(client: Any, model: str) -> None:
    if hasattr(client, "chat"):
        await client.chat.completions.create(model=model, messages=MESSAGES)
    else:
        await client.messages.create(model=model, messages=MESSAGES, max_tokens=64)


class Call:
    """One call, with every request that the SDK makes for it."""

    def __init__(self, sdk: Any, case: Report) -> None:
        self.sdk = sdk
        self.case = case
        self.tries: list[Report] = []

    async def on_request(self, _request: Any) -> None:
        self.tries.append({"sent_ms": now_ms()})

    async def on_response(self, response: Any) -> None:
        self.tries[-1].update(
            answered_ms=now_ms(),
            status=response.status_code,
            retry_after_ms=number(response.headers.get("retry-after-ms")),
            retry_after=number(response.headers.get("retry-after")),
            should_retry=response.headers.get("x-should-retry"),
        )
        if response.status_code == 429:
            print(f"refused {self.case['name']}", file=sys.stderr, flush=True)

    def client(self) -> Any:
        http = self.sdk.DefaultAsyncHttpxClient(
            event_hooks={"request": [self.on_request], "response": [self.on_response]}
        )
        options = {
            "base_url": self.case["base_url"],
            "api_key": self.case["key"],
            "default_headers": self.case.get("headers", {}),
            "max_retries": self.case.get("max_retries", 2),
            "http_client": http,
        }
        if hasattr(self.sdk, "AsyncOpenAI"):
            return self.sdk.AsyncOpenAI(**options)
        return self.sdk.AsyncAnthropic(**options)

    async def run(self, model: str) -> Report:
        error = None
        try:
            async with self.client() as client:
                for _ in range(self.case.get("before", 0)):
                    await create(client, model)
                    self.tries.clear()
                await create(client, model)
        except Exception as raised:  # Whatever the SDK lets through is a finding for the caller.
            error = {"class": type(raised).__name__, "message": str(raised)}
        return {"name": self.case["name"], "tries": self.tries, "error": error}


async def run_all(sdk: Any, cases: list[Report], model: str) -> list[Report]:
    return list(await asyncio.gather(*(Call(sdk, case).run(model) for case in cases)))


def main() -> int:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in ("openai", "anthropic"):
        print("usage: limits.py openai|anthropic", file=sys.stderr)
        return 2
    sdk = __import__(name)
    calls = asyncio.run(run_all(sdk, json.loads(os.environ["CASES"]), os.environ["MODEL"]))
    print(json.dumps({"sdk": f"{name}-python", "sdk_version": sdk.__version__, "calls": calls}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
