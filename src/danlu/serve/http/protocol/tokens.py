"""POST /tokenize, /detokenize and /tokenizer_info, in vLLM's shapes.

Knows nothing of tokenizers: the engine's side has them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from danlu.core.errors import RequestError
from danlu.serve.engine.request import DetokenizeRequest, ServedModel, TokenizeRequest
from danlu.serve.http.protocol.chat import ChatMessage, Tool
from danlu.serve.http.protocol.parse import TokenId
from danlu.serve.http.protocol.sampling import Asked


class TokenizeBody(Asked, kw_only=True):
    """POST /tokenize: a text or a conversation."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None

    def to_request(self, model: ServedModel) -> TokenizeRequest:
        """The same for the engine."""
        if (self.prompt is None) == (self.messages is None):
            what = "None" if self.prompt is None else "Both"
            raise RequestError(f"{what} of prompt and messages were sent.", "Send one of them.", param="prompt")
        images: list[bytes] = []
        prompt: Any = self.prompt
        if self.messages is not None:
            prompt = [m.to_message(f"messages[{i}]", model, images) for i, m in enumerate(self.messages)]
        tools = tuple(msgspec.to_builtins(tool) for tool in self.tools or ())
        return TokenizeRequest(
            model=model.name, prompt=prompt, tools=tools, add_special_tokens=self.add_special_tokens
        )  # fmt: skip


class DetokenizeBody(Asked, kw_only=True):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]

    def to_request(self, model: ServedModel) -> DetokenizeRequest:
        """The same for the engine."""
        return DetokenizeRequest(model=model.name, ids=tuple(self.tokens))


class TokenizerBody(Asked, kw_only=True):
    """POST /tokenizer_info."""
