"""One YAML per published recipe."""
