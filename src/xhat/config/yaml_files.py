"""YAML that people write, recipes and studies, read in one way: UTF-8, and no key twice.

YAML's own readers keep the last of two equal keys, so that a second `denoise:` under `terms:` would silently drop the first
loss. Merge keys (`<<: *base`), whose values are meant to be overridden, stay what they are.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from xhat.errors import DuplicateKeyError, YamlError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a second key, and reads 1e-3 as the number it is in all formats but YAML 1.1."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = str(key.value), key.start_mark.line + 1  # 1 and "1" would be one name of a term or a change
            if name in lines:
                raise DuplicateKeyError(f"{name} stands twice, in line {lines[name]} and line {line}: keep one of them")
            lines[name] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,2}$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text.

    Args:
        text: YAML.
        where: its name in errors.

    Raises:
        YamlError: it is no YAML.
        DuplicateKeyError: a mapping in it holds a key twice; with the key and its lines.
    """
    try:
        return yaml.load(text, _Loader)
    except DuplicateKeyError as error:
        raise DuplicateKeyError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """The values of a YAML file; errors as `parse_yaml`."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is not YAML: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read_yaml`, of a file that must hold key: value lines."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise YamlError(f"{path} holds no config: write key: value lines, see the presets")
    return values
