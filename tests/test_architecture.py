"""The promises of ARCHITECTURE.md, held by reading the code: who imports whom, what is never done, where things lie."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from danlu.cli.main import verbs
from danlu.core import plugins

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "danlu"

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "lineage": {"core"},
    "text": {"core"},
    "data": {"core", "lineage", "text"},
    "models": {"core", "text"},
    "train": {"core", "lineage", "text", "data", "models"},
    "compress": {"core", "lineage", "text", "data", "models", "train"},
    "evaluate": {"core", "lineage", "text"},
    "serve": {"core", "lineage", "text", "models"},
    "client": {"core"},
    "gateway": {"core", "client", "text"},
    "apps": {"core", "client", "text"},
    "console": {"core", "client", "lineage"},
}
MAY_IMPORT["flow"] = set(MAY_IMPORT)
FACADE = "danlu"
"""danlu/__init__.py: ``run``, ``load`` and ``engine``, wired when called; and what they give."""
MAY_IMPORT["cli"] = {*MAY_IMPORT, FACADE}
MAY_IMPORT[FACADE] = set(MAY_IMPORT) - {"cli"}

TORCH_SIDE = {"models", "train", "compress", "serve"}
HTTP_SIDE = ("core", "lineage", "text", "data", "evaluate", "client", "gateway", "apps", "console")
PLUGIN_FOLDERS = [
    "data.ops",
    "models.archs",
    "models.heads",
    "models.inputs",
    "train.stages",
    "compress.methods",
    "evaluate.tasks",
    "flow.stages",
    "gateway.providers",
]
NEVER_IMPORTED = {
    "transformers",
    "peft",
    "accelerate",
    "pandas",
    "requests",
    "httpx",
    "torchvision",
    "torchaudio",
    "torchao",
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle"}


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: Path
    tree: ast.Module

    @property
    def domain(self) -> str:
        """core, lineage, … or the facade."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return FACADE if len(parts) == 1 else parts[0]

    @property
    def module(self) -> str:
        """Its dotted name."""
        parts = self.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted name of everything imported, at the top, inside functions and for type checking."""
        package = self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*parent, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Every call and the dotted name of what is called."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node, ast.unparse(node.func)

    def at(self, line: int) -> str:
        """For messages."""
        return f"{self.path.relative_to(ROOT)}:{line}"


@functools.cache
def sources() -> tuple[Source, ...]:
    return tuple(Source(p, ast.parse(p.read_text(encoding="utf-8"))) for p in sorted(PACKAGE.rglob("*.py")))


def domain_of(name: str) -> str | None:
    """The domain that a dotted import name belongs to; None for other packages."""
    parts = name.split(".")
    if parts[0] != "danlu":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else FACADE


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Every file that is or will be committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        found = [
            p for folder in ("src", "tests", "scripts", "recipes", "docs", "bench") for p in (ROOT / folder).rglob("*")
        ]
        return tuple(p for p in [*found, *ROOT.glob("*.*")] if p.is_file() and "__pycache__" not in p.parts)
    return tuple(ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file())


# who imports whom


def test_every_folder_of_the_package_has_a_row_in_the_table():
    assert {source.domain for source in sources()} <= set(MAY_IMPORT)


def test_every_import_is_in_the_table():
    wrong = [
        f"{source.at(line)}: {source.domain} imports {name}"
        for source in sources()
        for line, name in source.imports()
        if (target := domain_of(name)) is not None
        and target != source.domain
        and target not in MAY_IMPORT[source.domain]
    ]
    assert not wrong, "\n".join(wrong)


def test_plugins_are_loaded_only_from_folders_in_the_table():
    wrong = [
        f"{source.at(call.lineno)}: {source.domain} loads {call.args[0].value}"
        for source in sources()
        for call, name in source.calls()
        if name in ("plugins.load", "plugins.names", "importlib.import_module")
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and (target := str(call.args[0].value).removeprefix("danlu.").split(".")[0]) != source.domain
        and target not in MAY_IMPORT[source.domain]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_cycle():
    for domain, allowed in MAY_IMPORT.items():
        for target in allowed:
            assert domain not in MAY_IMPORT[target], f"{domain} and {target} may import each other"


def test_the_table_in_architecture_md_is_this_one():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z]+)` \| ([^|]*) \|", text, flags=re.MULTILINE))
    told = {domain: set(re.findall(r"[a-z]+", allowed)) for domain, allowed in rows.items() if domain in MAY_IMPORT}
    plain = {domain: allowed for domain, allowed in MAY_IMPORT.items() if domain not in ("flow", "cli", FACADE)}
    assert {domain: told.get(domain) for domain in plain} == plain


# the torch side


def test_only_the_torch_side_imports_torch():
    wrong = [
        f"{source.at(line)}: {name}"
        for source in sources()
        for line, name in source.imports()
        if name.split(".")[0] == "torch" and source.domain not in TORCH_SIDE and source.module != "danlu.core.device"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_torch_side_imports_core_device():
    wrong = [
        f"{source.at(line)}: {name}"
        for source in sources()
        for line, name in source.imports()
        if name.startswith("danlu.core.device") and source.domain not in TORCH_SIDE
    ]
    assert not wrong, "\n".join(wrong)


def test_the_http_side_and_the_command_line_never_load_torch():
    modules = [s.module for s in sources() if s.domain in HTTP_SIDE and s.module != "danlu.core.device"]
    modules += ["danlu", *(f"danlu.cli.{verb}" for verb in verbs())]
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from danlu.cli.main import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'daft', 'yaml', 'tyro', 'rich', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


# plugins


@pytest.mark.parametrize("folder", [f for f in PLUGIN_FOLDERS if (PACKAGE / f.replace(".", "/")).is_dir()])
def test_listing_plugins_imports_nothing(folder: str):
    code = (
        f"import sys; from danlu.core import plugins; plugins.names({folder!r})\n"
        f"loaded = [m for m in sys.modules if m.startswith('danlu.{folder}')]; assert not loaded, loaded"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [f for f in PLUGIN_FOLDERS if (PACKAGE / f.replace(".", "/")).is_dir()])
def test_every_file_of_a_plugin_folder_exports_plugin(folder: str):
    for name in plugins.names(folder):
        path = PACKAGE / folder.replace(".", "/") / f"{name}.py"
        if not path.is_file():
            continue  # another package's
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = [ast.unparse(t) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
        targets += [ast.unparse(n.target) for n in tree.body if isinstance(n, ast.AnnAssign)]
        assert "plugin" in targets, f"{path.relative_to(ROOT)} exports no plugin"


# what is never done


def test_test_oracles_and_heavy_libraries_are_never_imported():
    wrong = [
        f"{source.at(line)}: {name}"
        for source in sources()
        for line, name in source.imports()
        if name.split(".")[0] in NEVER_IMPORTED
    ]
    assert not wrong, "\n".join(wrong)


def test_no_code_is_loaded_from_data():
    wrong = [
        f"{source.at(line)}: {name}"
        for source in sources()
        for line, name in source.imports()
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    for source in sources():
        for call, name in source.calls():
            keywords = {k.arg for k in call.keywords}
            runs_shell = any(k.arg == "shell" and not _is_false(k.value) for k in call.keywords)
            is_yaml = (
                name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and source.module != "danlu.core.config"
            )
            banned = name in ("eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load", "os.system")
            if banned or is_yaml or runs_shell or keywords & UNSAFE_KEYWORDS:
                wrong.append(f"{source.at(call.lineno)}: {ast.unparse(call)[:80]}")
    assert not wrong, "\n".join(wrong)


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_only_the_command_line_reads_the_environment_and_prints():
    wrong = []
    for source in sources():
        if source.domain in ("cli", FACADE):
            continue
        for node in ast.walk(source.tree):
            reads = isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ"
            if reads and isinstance(node.ctx, ast.Load):
                wrong.append(source.at(node.lineno))
        wrong += [source.at(c.lineno) for c, name in source.calls() if name in ("os.environ.get", "os.getenv", "print")]
    assert not wrong, "\n".join(wrong)


def test_no_error_is_swallowed():
    wrong = [
        source.at(node.lineno)
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body)
    ]
    assert not wrong, "\n".join(wrong)


# where things lie


def test_every_module_says_what_it_is():
    wrong = [s.at(1) for s in sources() if not ast.get_docstring(s.tree)]
    assert not wrong, "\n".join(wrong)


def test_no_file_has_a_name_that_means_anything():
    banned = {"utils", "util", "helpers", "helper", "common", "misc", "constants", "manager"}
    assert not [p for p in project_files() if p.suffix == ".py" and p.stem in banned]


def test_tests_mirror_the_code():
    wrong = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        *folders, name = path.relative_to(ROOT / "tests").with_suffix("").parts
        if not folders or folders[0] in ("clients", "contracts") or "end_to_end" in folders:
            continue
        home = ROOT / folders[0] if folders[0] in ("bench", "scripts") else PACKAGE / Path(*folders)
        subject = home / name.removeprefix("test_")
        if not subject.with_suffix(".py").is_file() and not subject.is_dir():
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_to_do_in_the_code():
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in project_files()
        if path.suffix in (".py", ".sh", ".yaml", ".toml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(rf"\b({marks})\b", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_names_a_registry_host_or_a_place_outside_the_project():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "debian" + ".org", "download.py" + "torch.org"]
    hosts += ["anaconda" + ".org", "crates" + ".io", "proxy.go" + "lang.org"]
    places = [re.escape("/wo" + "rk/"), r"(?<![\w/-])(\.\./)?sha" + "red/", re.escape(".lib" + "rary/")]
    pattern = re.compile("|".join([*map(re.escape, hosts), *places]))
    wrong = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        wrong += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert not wrong, "\n".join(wrong)


# documents and recipes

DOCUMENTS = ["README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_commands_that_exist(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    code = "\n".join(
        re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    )
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets
    assert set(re.findall(r"(?:^|[\s/])danlu ([a-z]+)\b", code, flags=re.MULTILINE)) <= set(verbs())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


def test_every_recipe_is_right():
    from danlu.flow.recipe import load_recipe

    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        assert load_recipe(path).stages, path


def test_every_dependency_is_used():
    imported = {name.split(".")[0] for source in sources() for _, name in source.imports()}
    import_names = {"pillow": "PIL", "pyyaml": "yaml", "python-stdnum": "stdnum"}
    not_imported = {"uvloop", "httptools", "tqdm"}  # uvicorn takes the first two by itself; the third is only capped
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(line).name for line in project["dependencies"]} - not_imported
    assert {name for name in needed if import_names.get(name, name) not in imported} == set()


def test_every_dependency_is_defended():
    from scripts.lock import direct_requirements

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [r.name for r in direct_requirements() if f"`{r.name}`" not in text] == []
