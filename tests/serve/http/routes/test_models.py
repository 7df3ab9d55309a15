"""What is served, and adapters that come and go."""

import json
from dataclasses import replace

import pytest

from tests.serve.http.conftest import SERVED

LORA = {"lora_name": "polite", "lora_path": "polite/v1"}
ADMIN = {"authorization": "Bearer sesame"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "adapters" / "polite" / "v1").mkdir(parents=True)
    return tmp_path / "adapters"


def test_models_tell_what_they_can_do_and_adapters_their_model(running):
    running.engine.served = [SERVED, replace(SERVED, name="polite", base="fake")]
    status, _, content = running.call("/v1/models")
    assert status == 200
    first, second = json.loads(content)["data"]
    assert (first["id"], first["parent"], first["created"], first["dimensions"]) == ("fake", None, 7, 4)
    assert first["abilities"] == ["classify", "embed", "score", "tag", "write"]
    assert (second["id"], second["root"], second["parent"]) == ("polite", "fake", "fake")
    assert json.loads(running.call("/v1/models/polite")[2]) == second


def test_an_adapter_answers_under_its_own_name(running):
    running.engine.served = [SERVED, replace(SERVED, name="polite", base="fake")]
    assert running.call("/v1/completions", {"model": "polite", "prompt": "x"})[0] == 200
    assert running.engine.seen[-1].model == "polite"
    assert running.call("/v1/completions", {"prompt": "x"})[0] == 200
    assert running.engine.seen[-1].model == "fake"


def test_adapters_are_loaded_with_the_admins_key_from_their_folder(start, root):
    running = start(admin_key="sesame", adapter_root=root)
    status, _, content = running.call("/v1/load_lora_adapter", LORA, ADMIN)
    assert (status, json.loads(content)) == (200, {"status": "loaded", "model": "polite", "version": 1})
    request = running.engine.seen[-1]
    assert (request.action, request.name, request.folder) == ("load", "polite", str(root / "polite" / "v1"))
    running.engine.served = [SERVED, replace(SERVED, name="polite", base="fake")]
    assert running.call("/v1/unload_lora_adapter", {"lora_name": "polite"}, ADMIN)[0] == 200
    assert running.engine.seen[-1].action == "unload"
    assert running.call("/v1/completions", {"prompt": "x"})[0] == 200  # other routes need no key


def test_nobody_loads_adapters_by_default(running, start, root):
    status, error = running.error_of("/v1/load_lora_adapter", LORA)
    assert (status, error["code"], error["type"]) == (403, "adapters_not_allowed", "permission_error")
    assert "Start the server with adapter_root" in error["message"]
    keyed = start(admin_key="sesame", adapter_root=root)
    for headers in ({}, {"authorization": "Bearer guess"}):
        assert "Send the server's admin_key" in keyed.error_of("/v1/load_lora_adapter", LORA, headers)[1]["message"]
    assert start(adapter_root=root).error_of("/v1/unload_lora_adapter", {"lora_name": "polite"})[0] == 403


def test_on_loopback_a_flag_is_enough(start, root):
    running = start(allow_adapter_loading=True, adapter_root=root)
    assert running.call("/v1/load_lora_adapter", LORA)[0] == 200


@pytest.mark.parametrize("path", ["..", "/etc", "polite/../../adapters2", "nowhere", "polite/v1/\0", "link"])
def test_no_folder_outside_the_root_is_loaded(start, root, path):
    (root.parent / "adapters2").mkdir()
    (root / "link").symlink_to(root.parent / "adapters2")
    running = start(allow_adapter_loading=True, adapter_root=root)
    status, error = running.error_of("/v1/load_lora_adapter", {**LORA, "lora_path": path})
    assert (status, error["param"]) == (400, "lora_path")
    assert not running.engine.seen


def test_an_adapter_cannot_take_a_models_name_and_an_unknown_one_is_404(start, root):
    running = start(allow_adapter_loading=True, adapter_root=root)
    status, error = running.error_of("/v1/load_lora_adapter", {**LORA, "lora_name": "fake"})
    assert (status, error["param"]) == (400, "lora_name")
    assert running.error_of("/v1/unload_lora_adapter", {"lora_name": "polite"})[0] == 404
