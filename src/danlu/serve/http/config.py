"""What a person can set about the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field

from danlu.core.errors import ConfigError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """Where to listen, who may ask, and the limits that keep one request from hurting the others."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the server to the network, so set api_key too."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    api_key: str | None = field(default=None, repr=False)
    """Key that requests must carry as a bearer token; none lets everybody in who reaches the host."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, beside the loopback ones, that requests may name while the server listens on loopback (a proxy's)."""
    default_max_tokens: int = 1024
    """Length of an answer when the request does not say."""
    max_body_bytes: int = 1 << 20
    """Largest request body."""
    max_header_bytes: int = 1 << 15
    """Largest request line and headers together."""
    max_prompts: int = 64
    """Most prompts in one completions request."""
    max_connections: int = 1024
    """Open connections above which new requests get 503."""
    read_timeout_s: float = 30.0
    """A client that takes longer to send its request is cut off."""
    request_timeout_s: float = 600.0
    """Longest time for one answer, its wait in the queue counted."""
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
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("api_key is empty or has characters outside printable ASCII.", "Use letters and digits.")
        for name in ("default_max_tokens", "max_body_bytes", "max_header_bytes", "max_prompts", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        for name in ("read_timeout_s", "request_timeout_s", "ping_s", "stall_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use more than 0.")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain_s is {self.drain_s}.", "Use 0 or more.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK_HOSTS
