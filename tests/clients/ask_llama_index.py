"""LlamaIndex's OpenAILike against a server, in its own environment; prints what it returned as JSON."""

import json
import sys

from llama_index.core.llms import ChatMessage  # pyright: ignore[reportMissingImports]
from llama_index.llms.openai_like import OpenAILike  # pyright: ignore[reportMissingImports]

SETTINGS = {"model": "chat", "api_base": sys.argv[1] + "/v1", "api_key": "unused", "temperature": 0, "max_tokens": 24}
messages = [ChatMessage(role="user", content="Say hello")]
chat = OpenAILike(**SETTINGS, is_chat_model=True, context_window=1024)
complete = OpenAILike(**SETTINGS, is_chat_model=False, context_window=1024)
print(
    json.dumps(
        {
            "whole": chat.chat(messages).message.content,
            "pieces": [piece.delta for piece in chat.stream_chat(messages)],
            "text": complete.complete("The dress has").text,
            "text_pieces": [piece.delta for piece in complete.stream_complete("The dress has")],
        }
    )
)
