"""Run a recipe from Python; what is already done is not done again.

python examples/run_a_recipe.py recipes/product_copy.yaml train.steps=50
"""

import sys

import danlu


def main(recipe: str = "recipes/product_copy.yaml", *overrides: str) -> None:
    result = danlu.run(recipe, *overrides)
    for name, artifact in result.artifacts.items():
        state = "reused" if name in result.reused else "made"
        print(f"{name:16} {state:7} {artifact.id}  {artifact.manifest.cost.seconds:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
