"""Print the JSON Schema of recipes: every stage and key, for reading and for completion in editors.

Examples:
  danlu schema > .danlu/recipe.schema.json
  danlu schema --stage train

In VS Code put this first in a recipe:  # yaml-language-server: $schema=../.danlu/recipe.schema.json
"""

from __future__ import annotations

import json

from danlu.flow.schema import recipe_schema, stage_schema


def command(*, stage: str | None = None) -> int:
    """Print the JSON Schema of recipes.

    Args:
        stage: Only this stage plugin.
    """
    schema = recipe_schema() if stage is None else stage_schema(stage)
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0
