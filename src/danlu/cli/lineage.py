"""Draw where an artifact came from: a tree back to the fetched files, with kinds, ids and times.

Examples:
  danlu lineage product-copy
  danlu lineage report --home /data/danlu
"""

from __future__ import annotations

import tyro
from rich.text import Text
from rich.tree import Tree

import danlu
from danlu.cli.display import result_console
from danlu.cli.options import Home
from danlu.flow.words import duration
from danlu.lineage.manifest import Manifest
from danlu.lineage.runs import resolve
from danlu.lineage.store import Artifact, Store


def command(id: tyro.conf.Positional[str], *, home: Home = None) -> int:
    """Draw where an artifact came from.

    Args:
        id: Artifact id or its start, alias, or stage of the latest run.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    store = Store(home or danlu.home())
    artifact = resolve(store, id)
    seen: set[str] = set()
    tree = Tree(_label("", artifact.manifest))
    _grow(tree, artifact, store, seen)
    result_console().print(tree)
    return 0


def _grow(tree: Tree, artifact: Artifact, store: Store, seen: set[str]) -> None:
    """Add the inputs of ``artifact``; one drawn already is not drawn out again."""
    seen.add(artifact.id)
    for name, identifier in artifact.manifest.origin.inputs.items():
        source = store.get(identifier)
        label = _label(name, source.manifest)
        if identifier in seen and source.manifest.origin.inputs:
            tree.add(label.append("  (see above)", style="dim"))
        else:
            _grow(tree.add(label), source, store, seen)


def _label(role: str, manifest: Manifest) -> Text:
    label = Text(f"{role}: " if role else "", style="dim")
    label.append(manifest.name, style="bold").append(f"  {manifest.kind} ").append(manifest.id[:10], style="cyan")
    label.append(f"  {duration(manifest.cost.seconds)}", style="dim")
    config = manifest.origin.config
    origin = config.get("package") or config.get("path")
    if not manifest.origin.inputs and origin:
        place = f"{origin} {config.get('version') or ''}".strip()
        label.append(f"  ← {place} {config.get('member') or ''} sha256 {str(config.get('sha256'))[:12]}", style="green")
    return label
