"""Keys, their names and tenants."""

import hashlib

import pytest

from danlu.core.errors import ConfigError
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.keys import Keys


def sha(key):
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_of_a_file_are_told_apart_by_their_hash(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\nann {sha('one')}\nbob sha256:{sha('two').upper()}\n".replace("SHA256", "sha256"))
    keys = Keys(HttpConfig(api_keys_file=path, api_key="three", admin_key="four"))
    assert keys.is_asked
    ann, bob, own, admin = (keys.holder(f"Bearer {key}".encode()) for key in ("one", "two", "three", "four"))
    assert [who.name for who in (ann, bob, own, admin)] == ["ann", "bob", "api_key", "admin"]
    assert [who.is_admin for who in (ann, bob, own, admin)] == [False, False, False, True]
    assert ann.tenant == sha("one")[:16]
    assert keys.holder(b"Bearer five") is None
    assert keys.holder(b"Basic one") is None
    assert keys.holder(b"") is None


def test_an_admins_key_alone_leaves_the_other_routes_open():
    assert not Keys(HttpConfig(admin_key="four")).is_asked


@pytest.mark.parametrize("line", ["ann", "ann xyz", f"ann {'0' * 63}", f"ann {'0' * 64} more", "\xff"])
def test_a_file_that_cannot_be_used_is_refused(tmp_path, line):
    path = tmp_path / "keys"
    path.write_bytes(line.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"Line 1 of .* is no name with a SHA-256|cannot be read"):
        Keys(HttpConfig(api_keys_file=path))


def test_a_file_without_keys_or_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ConfigError, match="has no keys"):
        Keys(HttpConfig(api_keys_file=tmp_path / "keys"))
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(HttpConfig(api_keys_file=tmp_path / "elsewhere"))


def test_the_engine_is_told_the_tenant_and_never_the_key(start):
    running = start(api_key="sesame-1")
    headers = {"authorization": "Bearer sesame-1"}
    assert running.call("/v1/completions", {"prompt": "x"}, headers)[0] == 200
    assert running.engine.seen[-1].caller.tenant == sha("sesame-1")[:16]
