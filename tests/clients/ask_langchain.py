"""LangChain's own classes against a server, in their own environment; prints what they returned as JSON."""

import json
import sys
from typing import Literal

from langchain_core.tools import tool  # pyright: ignore[reportMissingImports]
from langchain_openai import ChatOpenAI, OpenAIEmbeddings  # pyright: ignore[reportMissingImports]

BASE_URL = sys.argv[1] + "/v1"
SCHEMA = {
    "title": "Dress",
    "type": "object",
    "properties": {"colour": {"enum": ["navy", "red"]}, "pockets": {"type": "boolean"}},
    "required": ["colour", "pockets"],
    "additionalProperties": False,
}


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell the weather of a city."""
    return f"rain in {city}"


chat = ChatOpenAI(base_url=BASE_URL, api_key="unused", model="chat", temperature=0, max_tokens=24)
longer = ChatOpenAI(base_url=BASE_URL, api_key="unused", model="chat", temperature=0, max_tokens=400)
embed = OpenAIEmbeddings(base_url=BASE_URL, api_key="unused", model="sentences", check_embedding_ctx_length=False)
pieces = [piece.content for piece in chat.stream("Say hello")]
answer = chat.invoke("Say hello")
print(
    json.dumps(
        {
            "whole": answer.content,
            "usage": dict(answer.usage_metadata),
            "pieces": pieces,
            "dress": longer.with_structured_output(SCHEMA, method="json_schema").invoke("Describe it"),
            "calls": longer.bind_tools([weather], tool_choice="weather").invoke("Hi").tool_calls,
            "vectors": embed.embed_documents(["the cat", "dogs"]),
            "batch": [message.content for message in chat.batch(["Say hello"] * 3)],
        }
    )
)
