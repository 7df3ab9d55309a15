"""What a person can set about the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from danlu.core.errors import ConfigError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_COUNTS = (
    "default_max_tokens", "max_body_bytes", "max_header_bytes", "max_prompts", "max_answers", "max_texts", "max_stored",
    "max_stored_bytes", "max_pending_bytes", "max_connections",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """Where to listen, who may ask, and the limits that keep one request from hurting the others."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the server to the network, so set api_key too."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    api_key: str | None = field(default=None, repr=False)
    """Key that requests must carry as a bearer token; none lets everybody in who reaches the host."""
    api_keys_file: Path | None = None
    """File with more keys, a line each: a name, a space, and the key's SHA-256 in hexadecimal."""
    admin_key: str | None = field(default=None, repr=False)
    """Key that may load and unload adapters; it opens every other route too."""
    allow_adapter_loading: bool = False
    """Whether adapters may be loaded without admin_key, while the server listens on loopback."""
    adapter_root: Path | None = None
    """Folder that adapters may be loaded from; none allows no loading."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, beside the loopback ones, that requests may name while the server listens on loopback (a proxy's)."""
    default_max_tokens: int = 1024
    """Length of an answer when the request does not say."""
    max_body_bytes: int = 4 << 20
    """Largest request body."""
    max_header_bytes: int = 1 << 15
    """Largest request line and headers together."""
    max_prompts: int = 64
    """Most prompts in one completions request."""
    max_answers: int = 128
    """Most answers to one request: its prompts times n."""
    max_texts: int = 2048
    """Most texts, pairs or images in one request to embed, classify, tag, score or rank."""
    max_stored: int = 512
    """Responses that are kept for previous_response_id; the oldest goes first."""
    max_stored_bytes: int = 64 << 20
    """Memory that kept responses may take."""
    max_pending_bytes: int = 256 << 10
    """What may wait for a client that reads its stream slowly; its request is then cancelled."""
    max_connections: int = 1024
    """Open connections above which new requests get 503."""
    read_timeout_s: float = 30.0
    """A client that takes longer to send its request is cut off."""
    write_timeout_s: float = 60.0
    """A client that takes nothing of its answer for so long is cut off."""
    request_timeout_s: float = 600.0
    """Longest time for one answer, its wait in the queue counted; a request may ask for less."""
    ping_s: float = 15.0
    """Seconds between the comments that keep a silent stream open."""
    stall_s: float = 60.0
    """The engine counts as hung when its scheduler has stood still this long with work to do."""
    drain_s: float = 30.0
    """Time that running answers get to finish when the server is told to stop."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty.", "Use 127.0.0.1 for this machine only.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}.", "Use 1 to 65535, or 0 for any free one.")
        for name in ("api_key", "admin_key"):
            key = getattr(self, name)
            if key is not None and not (key and key.isascii() and key.isprintable()):
                raise ConfigError(
                    f"{name} is empty or has characters outside printable ASCII.", "Use letters and digits."
                )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        for name in ("read_timeout_s", "write_timeout_s", "request_timeout_s", "ping_s", "stall_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use more than 0.")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain_s is {self.drain_s}.", "Use 0 or more.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK_HOSTS
