"""What verifiers plays with: a harness of this process, where its own start programs, and a chat endpoint."""

import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1.clients import EvalClientConfig, ModelContext
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.runtimes import ProgramResult
from verifiers.v1.types import SystemMessage, UserMessage
from verifiers.v1.utils import loaders

__all__ = ["ChatHarness"]
sys.modules["titan_pt_chat"] = sys.modules[__name__]  # a harness is found by the name of a module without dots


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """Asks for one turn of a conversation."""

    APPENDS_SYSTEM_PROMPT = SUPPORTS_RESUME = True
    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, *rest: Any) -> Any:
        """Send the conversation; the answer enters the trace on its way."""
        system, prompt = self.resolve_prompt(rest[-1])
        messages = [SystemMessage(content=system)] if system else []
        messages += [UserMessage(content=prompt)] if isinstance(prompt, str) else prompt or []
        body = {"model": ctx.model, "messages": list(map(message_to_wire, messages))}
        url, headers = f"{endpoint}/chat/completions", {"Authorization": f"Bearer {secret}"}
        async with aiohttp.request("POST", url, json=body, headers=headers, timeout=aiohttp.ClientTimeout()) as answer:
            return ProgramResult(exit_code=int(answer.status != 200), stdout="", stderr=await answer.text())


def load(name: str, options: dict[str, Any]) -> Any:
    """The environment of a taskset's id with its settings, those of "agent" for the one agent that plays."""
    settings: dict[str, Any] = {}
    for key, value in options.items():
        *sections, last = key.split(".")
        functools.reduce(lambda part, section: part.setdefault(section, {}), sections, settings)[last] = value
    seat = {**settings.pop("agent", {}), "harness": {"id": "titan_pt_chat"}, "runtime": {"type": "subprocess"}}
    fields = loaders.env_config_type(name).model_fields
    roles = [role for role, field in fields.items() if isinstance(field.default, vf.AgentConfig)]
    if len(roles) != 1:
        raise ValueError(f"it is played by {len(roles)} agents ({', '.join(roles)}), and one policy is trained")
    return loaders.load_environment(loaders.resolve_env_config({"taskset": {"id": name, **settings}, roles[0]: seat}))


async def serve(answer: Callable[[list[dict[str, str]]], Awaitable[str | None]]) -> ModelContext:
    """Serve a chat endpoint on the loopback device; what verifiers needs to know of it."""

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        text = await answer([{"role": message["role"], "content": _text(message)} for message in body["messages"]])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        turn = {"id": "turn", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        return web.json_response(turn, status=503 if text is None else 200)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    return ModelContext(model="policy", client=EvalClientConfig(base_url=url, api_key_var="TITAN_PT_NO_KEY"))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
