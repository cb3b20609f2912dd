"""YAML that people write, recipes and studies, read in one way: UTF-8, and no key twice.

YAML's own readers keep the last of two equal keys, so that a second `denoise:` under `terms:` would silently drop the first
loss. Merge keys (`<<: *base`), whose values are meant to be overridden, stay what they are.
"""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from xhat.errors import DuplicateKeyError, TooLargeError, YamlError
from xhat.files.atomic import read_bytes

LARGEST, DEEPEST, MOST_VALUES = 1_000_000, 50, 20_000
"""Letters of a text, nesting, and values: more than any config or study has."""


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
        _require_small(text)
        return yaml.load(text, _Loader)
    except (DuplicateKeyError, TooLargeError) as error:
        raise type(error)(f"{where}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date of the 32nd is a ValueError
        raise YamlError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _require_small(text: str) -> None:
    """Refuse what would take its reader's stack or memory: nesting, and values that stand for each other many times over.

    Raises:
        TooLargeError: of such a text.
    """
    if len(text) > LARGEST:
        raise TooLargeError(f"it is larger than {LARGEST:,} letters")
    opened = list(accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(letter, 0) for letter in text))
    if max(opened, default=0) > DEEPEST:  # YAML's own scanner takes quadratic time for them
        raise TooLargeError(f"its brackets are nested more than {DEEPEST} deep")
    depth, nodes, anchors, open_anchors = 0, 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_anchors):
                raise TooLargeError(f"*{event.anchor} stands for itself, without end")
            nodes += anchors.get(str(event.anchor), 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, nodes))
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor is not None:
                anchors[anchor] = nodes - before + 1
            depth -= 1
        if depth > DEEPEST:
            raise TooLargeError(f"it is nested more than {DEEPEST} deep")
        if nodes > MOST_VALUES:
            raise TooLargeError(f"it holds more than {MOST_VALUES:,} values, those that stand for others counted each time")


def read_yaml(path: Path) -> Any:
    """The values of a YAML file; errors as `parse_yaml`."""
    data = read_bytes(path, 4 * LARGEST + 1)  # of letters of four bytes; a device, or a wrong file, may have no end
    try:
        return parse_yaml(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is not YAML: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read_yaml`, of a file that must hold key: value lines."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise YamlError(f"{path} holds no config: write key: value lines, see the presets")
    return values
