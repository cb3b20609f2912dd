"""From the values of a recipe to objects: expressions, names, presets, changes."""
