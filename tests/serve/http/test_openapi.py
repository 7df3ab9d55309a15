"""The OpenAPI document says what the server does."""

import json

from danlu.serve.http.table import ENDPOINTS


def test_the_document_has_every_route_with_schemas_that_exist(running):
    status, _, content = running.call("/openapi.json")
    document = json.loads(content)
    assert (status, document["openapi"]) == (200, "3.1.0")
    told = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert told == {(e.method, e.path.replace(":path", "")) for e in ENDPOINTS}
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    references = set(_references(document))
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references <= known
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"] == "Answer a conversation."
    assert "text/event-stream" in chat["responses"]["200"]["content"]


def _references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _references(inner)
