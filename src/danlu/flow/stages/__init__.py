"""One file a stage: exports ``plugin``, a ``danlu.flow.recipe.RecipeStage``."""
