"""Run a recipe: every stage in order, each reused when nothing it depends on changed.

KEY=VALUE changes the recipe for this run: STAGE.KEY=VALUE for a stage, seed=3 for the recipe itself. Values are YAML.
Stopped or killed, the same command goes on where it was. `danlu schema` lists every stage and key.

Examples:
  danlu run recipes/product_copy.yaml
  danlu run recipes/product_copy.yaml train.steps=50 seed=3 --no-serve
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import danlu
from danlu.cli.display import make_display
from danlu.cli.options import Home


def command(
    recipe: tyro.conf.Positional[Path],
    overrides: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = (),
    *,
    no_serve: tyro.conf.FlagCreatePairsOff[bool] = False,
    home: Home = None,
) -> int:
    """Run a recipe.

    Args:
        recipe: The recipe, a YAML file.
        overrides: Settings that replace the recipe's, for example train.steps=50.
        no_serve: End after the last artifact instead of serving the model.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    display = make_display()
    result = danlu.run(recipe, *overrides, serve=not no_serve, store=home, display=display)
    made = len(result.artifacts) - len(result.reused)
    display.say(f"Done: {made} made, {len(result.reused)} reused. `danlu show {result.id}` has the details.")
    return 0
