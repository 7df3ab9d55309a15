"""Start an engine and the HTTP server in front of it, and say how to talk to it: for a recipe and for `danlu serve`.

Loads no torch: the models live in the engine's own process, unless they are asked to live in this one.
"""

from __future__ import annotations

import json
import logging
import shlex
from typing import Any

from danlu.core.errors import DanluError, RequestError
from danlu.core.events import Events
from danlu.serve.engine.ask import reply
from danlu.serve.engine.remote import RemoteEngine
from danlu.serve.engine.request import ServedModel, ServingEngine, TokenizerRequest
from danlu.serve.engine.spec import EngineSpec
from danlu.serve.engine.supervise import RemoteConfig
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import reserve_port, serve

_LOG = logging.getLogger(__name__)
EXAMPLE = "Write product copy.\nTitle: Soft summer dress\nClass: Dresses\nMaterial: cotton\nColour: navy"


def serve_models(
    spec: EngineSpec, http: HttpConfig, events: Events, *, example: str = EXAMPLE, is_in_process: bool = False
) -> None:
    """Load the models of ``spec`` and serve them until SIGINT or SIGTERM. A port in use is known before the load.

    ``example`` is what the printed lines say to the model; ``is_in_process`` keeps the engine in this process.
    """
    sock = reserve_port(http.host, http.port)
    try:
        engine = start_engine(spec, events, stall_s=http.stall_s, is_in_process=is_in_process)
    except BaseException:
        sock.close()
        raise
    try:
        model = engine.models()[0]
        can_chat = "write" in model.abilities and _can_chat(engine, model)
    except BaseException:
        sock.close()
        engine.stop(0.0)
        raise
    has_key = http.api_key is not None or http.api_keys_file is not None

    def tell(url: str) -> None:
        names = ", ".join(served.name for served in engine.models())
        events.say(f"Serving {names} at {url}  (open it in a browser to try; Ctrl-C stops)")
        for line in lines_to_try(url, model, example, can_chat=can_chat, has_key=has_key):
            events.say(f"  {line}")

    serve(engine, http, tell, sock)


def start_engine(spec: EngineSpec, events: Events, *, stall_s: float, is_in_process: bool = False) -> ServingEngine:
    """An engine that has loaded everything of ``spec``; raises what is wrong with it."""
    if not is_in_process:
        return RemoteEngine(spec, RemoteConfig(stall_s=stall_s), say=events.say)
    from danlu.serve.engine.process import build_engine

    engine = build_engine(spec, events.say)
    try:
        for adapter in spec.adapters:
            reply(engine, adapter)
    except BaseException:
        engine.stop(0.0)
        raise
    return engine


def _can_chat(engine: ServingEngine, model: ServedModel) -> bool:
    try:
        return bool(reply(engine, TokenizerRequest(model=model.name)).value.get("chat_template"))
    except DanluError as error:
        if isinstance(error, RequestError) and error.status >= 500:
            _LOG.warning("Whether %s can chat is not known: %s", model.name, error)
        return False  # it has no tokenizer, and is asked with token ids


def lines_to_try(url: str, model: ServedModel, example: str, *, can_chat: bool, has_key: bool) -> list[str]:
    """A curl line and a Python line that can be pasted into a shell, for what ``model`` does."""
    body, route, call, shown = _call(model, example, can_chat)
    key = " -H 'Authorization: Bearer YOUR_KEY'" if has_key else ""
    text = json.dumps(body, ensure_ascii=False)
    curl = f"curl {url}{route} -H 'Content-Type: application/json'{key} -d {shlex.quote(text)}"
    api_key = "YOUR_KEY" if has_key else "unused"
    client = f"from openai import OpenAI; client = OpenAI(base_url={url + '/v1'!r}, api_key={api_key!r}); "
    if call:
        return [curl, f"python -c {_quoted(client + call + shown)}"]
    headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer YOUR_KEY"} if has_key else {})
    program = (
        f"import json, urllib.request as r; body = json.dumps({body!r}).encode(); "
        f"print(json.load(r.urlopen(r.Request({url + route!r}, body, {headers!r}))))"
    )
    return [curl, f"python -c {_quoted(program)}"]


def _call(model: ServedModel, example: str, can_chat: bool) -> tuple[dict[str, Any], str, str, str]:
    """Body and route of a request, and how the official client makes it and shows the answer; no call where the client
    has none."""
    name, abilities = model.name, model.abilities
    if "write" in abilities and can_chat:
        body = {"model": name, "messages": [{"role": "user", "content": example}], "max_tokens": 80}
        call = (
            f"messages = [{{'role': 'user', 'content': {example!r}}}]; "
            f"answer = client.chat.completions.create(model={name!r}, max_tokens=80, messages=messages); "
        )
        return body, "/v1/chat/completions", call, "print(answer.choices[0].message.content)"
    if "write" in abilities:
        body = {"model": name, "prompt": example, "max_tokens": 80}
        call = f"answer = client.completions.create(model={name!r}, max_tokens=80, prompt={example!r}); "
        return body, "/v1/completions", call, "print(answer.choices[0].text)"
    if "embed" in abilities and not model.takes_images:
        body = {"model": name, "input": [example]}
        call = f"answer = client.embeddings.create(model={name!r}, input=[{example!r}]); "
        return body, "/v1/embeddings", call, "print(answer.data[0].embedding[:8])"
    if model.takes_images:
        route = "/v1/classify" if "classify" in abilities else "/v1/embeddings"
        return {"model": name, "images": [_PIXEL]}, route, "", ""
    if "classify" in abilities:
        return {"model": name, "text": example}, "/predict", "", ""
    if "tag" in abilities:
        return {"model": name, "input": example}, "/v1/tag", "", ""
    documents = ["A cotton dress in navy.", "A pair of boots."]
    return {"model": name, "query": example, "documents": documents}, "/v1/rerank", "", ""


_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mOssJFjwAaYGHCAwSkBAKnOAOJ8i0BSAAAA"
    "AElFTkSuQmCC"
)
"""A small picture, to be replaced."""


def _quoted(program: str) -> str:
    """For a shell: in double quotes where nothing in it means anything there, which reads better."""
    return shlex.quote(program) if set(program) & set('"$`!') or "\\\\" in program else f'"{program}"'
