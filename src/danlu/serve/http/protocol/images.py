"""Images that come with a request, as data: URIs. Nothing is ever fetched.

Knows nothing of pixels: the engine's side decodes them.
"""

from __future__ import annotations

import base64
import binascii

from danlu.core.errors import RequestError

_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


def decode_image(uri: str, where: str) -> bytes:
    """The file in a data: URI; ``where`` names it in errors."""
    head, comma, data = uri.partition(",")
    if not head.lower().startswith("data:"):
        raise RequestError(
            f"{where} is no data: URI but {uri[:40]!r}.",
            "Nothing is fetched for a client: send data:image/png;base64,…",
            param=where,
        )
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(f"{where} is not base64.", "Send data:image/png;base64,…", param=where)
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} is not base64: {error}.", "Encode the whole file.", param=where) from error
    if not content.startswith(_STARTS):
        raise RequestError(f"{where} is neither PNG, JPEG nor WebP.", "Send one of these.", param=where)
    return content
