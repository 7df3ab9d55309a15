from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import danlu
from danlu.core import plugins
from danlu.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin folder ``danlu.probe`` with two plugins and a private file."""
    folder = tmp_path / "more" / "probe"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "copper.py").write_text("plugin = 'copper is here'\n")
    (folder / "broken.py").write_text("raise SystemExit('a plugin was imported by listing')\n")
    (folder / "_private.py").write_text("raise SystemExit\n")
    monkeypatch.setattr(danlu, "__path__", [*danlu.__path__, str(folder.parent)])
    yield folder
    for name in [name for name in sys.modules if name.startswith("danlu.probe")]:
        del sys.modules[name]


def third_party(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Pretend that another package offers these plugins of ``danlu.probe``."""
    points = [EntryPoint(name=name, value=value, group="danlu.probe") for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])


def test_listing_gives_the_file_names_and_imports_none(folder: Path):
    assert plugins.names("probe") == ["broken", "copper"]
    assert "danlu.probe.copper" not in sys.modules


def test_loading_gives_what_the_file_exports(folder: Path):
    assert plugins.load("probe", "copper") == "copper is here"


def test_a_new_file_is_a_new_plugin(folder: Path):
    (folder / "zinc.py").write_text("plugin = 30\n")
    assert plugins.names("probe") == ["broken", "copper", "zinc"]
    assert plugins.load("probe", "zinc") == 30


def test_an_unknown_plugin_names_the_closest(folder: Path):
    with pytest.raises(ConfigError, match=r"There is no probe plugin 'coper'\. Did you mean 'copper'\?"):
        plugins.load("probe", "coper")


@pytest.mark.parametrize("name", ["_private", "__init__", "copper.py", "../probe/copper", ""])
def test_only_listed_names_can_be_loaded(folder: Path, name: str):
    with pytest.raises(ConfigError, match="There is no probe plugin"):
        plugins.load("probe", name)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.deeper", "core.errors"])
def test_an_unknown_folder_is_an_error(name: str):
    with pytest.raises(ConfigError, match=rf"There is no plugin folder danlu\.{name}"):
        plugins.names(name)


def test_another_package_can_add_a_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch):
    third_party(monkeypatch, tin="math:pi")
    assert plugins.names("probe") == ["broken", "copper", "tin"]
    assert plugins.load("probe", "tin") == pytest.approx(3.14159, abs=1e-5)
    assert plugins.load("probe", "copper") == "copper is here"


def test_another_package_cannot_replace_ours_in_silence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    third_party(monkeypatch, copper="math:pi")
    with pytest.raises(
        ConfigError, match=r"Two probe plugins are called 'copper': danlu's own and math:pi\. Uninstall"
    ):
        plugins.load("probe", "copper")


@pytest.mark.parametrize("value", ["no_such_package:plugin", "math:no_such_name"])
def test_a_plugin_of_another_package_that_does_not_load_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
):
    third_party(monkeypatch, tin=value)
    with pytest.raises(
        ConfigError, match=rf"The probe plugin 'tin' \({value}\) cannot be loaded: .*Update or uninstall"
    ):
        plugins.load("probe", "tin")


def test_listing_a_torch_folder_does_not_load_torch():
    code = "import sys; from danlu.core import plugins; plugins.names('models.archs'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
