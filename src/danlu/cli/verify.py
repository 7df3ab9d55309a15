"""Hash artifacts again and compare: is every file still what its manifest says?

Examples:
  danlu verify                  every artifact of the store
  danlu verify product-copy     this one and all it was made from
"""

from __future__ import annotations

import sys

import tyro

import danlu
from danlu.cli.options import Home
from danlu.core.errors import StoreError
from danlu.lineage.runs import resolve
from danlu.lineage.store import Store


def command(id: tyro.conf.Positional[str] = "", *, home: Home = None) -> int:
    """Verify artifacts.

    Args:
        id: Artifact id or its start, alias, or stage of the latest run; all artifacts if left out.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    store = Store(home or danlu.home())
    identifiers = _ancestry(store, resolve(store, id).id) if id else store.ids()
    num_damaged = 0
    for identifier in identifiers:
        try:
            manifest = store.verify(identifier).manifest
        except StoreError as error:
            num_damaged += 1
            print(f"✗ {error}", file=sys.stderr)
        else:
            print(f"✓ {identifier}  {manifest.kind:<12} {manifest.name:<20} {manifest.size_bytes:>14,} bytes")
    if num_damaged:
        raise StoreError(f"{num_damaged} of {len(identifiers)} artifacts are damaged.", "See the lines above.")
    return 0


def _ancestry(store: Store, identifier: str) -> list[str]:
    """The artifact and everything it was made from, sources first."""
    ordered: list[str] = []

    def visit(current: str) -> None:
        if current in ordered:
            return
        for source in store.get(current).manifest.origin.inputs.values():
            visit(source)
        ordered.append(current)

    visit(identifier)
    return ordered
