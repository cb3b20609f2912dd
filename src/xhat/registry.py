"""The parts that a config can name, by kind: each is registered where it is defined, and found from here.

```python
@WEIGHTINGS.register
@dataclass(frozen=True)
class min_snr: ...           # min_snr(5) in Python and in a config

@SAMPLERS.register
class EulerMaruyama: ...     # EulerMaruyama() in Python; euler_maruyama() or EulerMaruyama() in a config
```
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

RESERVED = ("target", "times")
"""Names that the expression of a term has for the config's own."""

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Mapping[str, Any]):
    """The parts of one kind by name. Each has the name it has in Python and, if that is not lower case, one that is.

    Iteration gives the lower-case names alone, in the order of registration.

    Args:
        kind: what one part is called in messages.
        beside: families whose parts stand in the same expressions: a name is given once among them.
    """

    def __init__(self, kind: str, beside: "list[Registry] | None" = None) -> None:
        self.kind, self.beside = kind, beside if beside is not None else []
        self.beside.append(self)
        self._parts: dict[str, Any] = {}
        self._of_python: dict[str, str] = {}

    def register(self, part: Part) -> Part:
        """Add a class or a function under its own name; a decorator."""
        self.add(part.__name__, part)
        return part

    def named(self, name: str) -> Callable[[Part], Part]:
        """As `register`, with a lower-case name that is not made of Python's."""

        def register(part: Part) -> Part:
            self.add(part.__name__, part, name)
            return part

        return register

    def add(self, python: str, part: Any, name: str | None = None) -> None:
        """Add any object.

        Args:
            python: its name in Python.
            part: the object.
            name: its lower-case name; by default `python` in lower case, with underscores between words.

        Raises:
            ValueError: another part has the name.
        """
        name = name or snake_case(python)
        if name in self._parts and _defined_again(self._parts[name], part):
            self._parts[name] = part
            return
        for family, taken in ((family, n) for family in self.beside for n in (name, python)):
            if taken in family or taken in RESERVED:
                raise ValueError(f"there is a {family.kind} called {taken} already: choose another name")
        self._parts[name] = part
        if python != name:
            self._of_python[python] = name

    def names(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What stands for what now, for `restore`."""
        return dict(self._parts), dict(self._of_python)

    def restore(self, names: tuple[dict[str, Any], dict[str, str]]) -> None:
        """Forget what was registered since."""
        self._parts, self._of_python = dict(names[0]), dict(names[1])

    def __getitem__(self, name: str) -> Any:
        return self._parts[self._of_python.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._of_python

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _defined_again(before: Any, now: Any) -> bool:
    """Whether a part of a user's own replaces itself, as in a cell of a notebook that is run again."""
    own = [(getattr(part, "__module__", ""), getattr(part, "__qualname__", "")) for part in (before, now)]
    return before is not now and own[0] == own[1] and bool(own[0][1]) and not str(own[0][0]).startswith("xhat.")


def snake_case(name: str) -> str:
    """LogNormalSigma -> log_normal_sigma, X0 -> x0, DDIM -> ddim."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


_OF_TERMS: list[Registry] = []
NETWORKS = Registry("network")
SCHEDULES = Registry("schedule")
TARGETS = Registry("target", _OF_TERMS)
VARIANCES = Registry("variance")
TIME_INPUTS = Registry("time input")
TIMES = Registry("time sampler", _OF_TERMS)
WEIGHTINGS = Registry("weighting", _OF_TERMS)
LOSSES = Registry("loss", _OF_TERMS)
NORMS = Registry("norm", _OF_TERMS)
WHERE = Registry("mask", _OF_TERMS)
ESTIMATES = Registry("image estimate", _OF_TERMS)
GRADIENTS = Registry("way to differentiate a chain", _OF_TERMS)
DECODERS = Registry("decoder", _OF_TERMS)
PENALTIES = Registry("penalty", _OF_TERMS)
LIKELIHOODS = Registry("likelihood", _OF_TERMS)
ADVANTAGES = Registry("advantage", _OF_TERMS)
GUIDANCE = Registry("part of guidance", _OF_TERMS)
GATES = Registry("gate")
MULTIPLIERS = Registry("multiplier")
SAMPLERS = Registry("sampler", _OF_TERMS)
SPACINGS = Registry("spacing of sampling times")
PAIRINGS = Registry("pairing")
STEERINGS = Registry("way to steer", _OF_TERMS)
OPERATORS = Registry("linear operator", _OF_TERMS)
_OF_DATA: list[Registry] = []
DATA = Registry("data source", _OF_DATA)
UNITS = Registry("normalisation", _OF_DATA)
MAPS = Registry("map of values", _OF_DATA)
AUGMENTATIONS = Registry("augmentation")
FEATURES = Registry("network of features")

FAMILIES: tuple[Registry, ...] = tuple(family for family in list(globals().values()) if isinstance(family, Registry))
"""All of them."""
