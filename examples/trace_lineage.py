"""From a model back to the files it came from.

python examples/trace_lineage.py product-copy        # the same tree on the command line: danlu lineage product-copy
"""

import sys

import danlu
from danlu.lineage.runs import resolve
from danlu.lineage.store import Store


def show(store: Store, identifier: str, depth: int = 0) -> None:
    manifest = store.get(identifier).manifest
    energy = f"{manifest.cost.energy.value_wh:.3f} Wh"
    print("  " * depth + f"{manifest.name} ({manifest.kind} {manifest.id}), {manifest.cost.seconds:.1f} s, {energy}")
    for source in manifest.origin.inputs.values():
        show(store, source, depth + 1)


def main(name: str = "product-copy") -> None:
    store = Store(danlu.home())
    show(store, resolve(store, name).id)


if __name__ == "__main__":
    main(*sys.argv[1:])
