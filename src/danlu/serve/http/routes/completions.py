"""POST /v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from danlu.serve.http.protocol.completions import CompletionRequest
from danlu.serve.http.replies.completions import CompletionShape, CompletionWriter
from danlu.serve.http.service import EventStream, Service


async def complete(service: Service, request: Request) -> Response | EventStream:
    """Continue texts, or score them."""
    asked = await service.parse(request, CompletionRequest)
    model = service.find(asked.model, "write")
    caller = service.caller(request, asked)
    writes = asked.to_writes(model, caller, service.config)
    service.check_answers(writes)
    echoes: list[str] = []
    if asked.echo:
        for write in writes:
            prompt = write.prompt
            is_text = isinstance(prompt, str)
            ids = [token for token in prompt if isinstance(token, int)]
            echoes.append(str(prompt) if is_text else await service.detokenize(request, model, ids, caller))
    shape = CompletionShape(
        model=model.name,
        num_answers=asked.num_answers,
        num_drawn=writes[0].options.n,
        echoes=tuple(echoes),
        num_logprobs=asked.num_logprobs,
        only_scores=asked.only_scores,
        tells_prompt=asked.prompt_logprobs is not None,
        includes_usage=asked.includes_usage,
        includes_ids=bool(asked.return_token_ids),
    )
    return await service.write(request, writes, model, CompletionWriter(shape), is_stream=asked.is_stream)
