"""The parts that a config can name, by kind: each is registered where it is defined, and found from here.

```python
@WEIGHTINGS.register
@dataclass(frozen=True)
class min_snr: ...           # min_snr(5) in Python and in a config

@SAMPLERS.register
class DPMSolver2M: ...       # DPMSolver2M() in Python; dpm_solver2m or DPMSolver2M in a config
```
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Mapping[str, Any]):
    """The parts of one kind by name. Each has the name it has in Python and, if that is not lower case, one that is.

    Iteration gives the lower-case names alone, in the order of registration.

    Args:
        kind: what one part is called in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
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
            ValueError: another part of this kind has the name.
        """
        name = name or snake_case(python)
        if name in self or python in self:
            raise ValueError(f"there is a {self.kind} called {name if name in self else python} already: choose another name")
        self._parts[name] = part
        if python != name:
            self._of_python[python] = name

    def __getitem__(self, name: str) -> Any:
        return self._parts[self._of_python.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._of_python

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def snake_case(name: str) -> str:
    """LogNormalSigma -> log_normal_sigma, X0 -> x0, DDIM -> ddim."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


NETWORKS = Registry("network")
SCHEDULES = Registry("schedule")
TARGETS = Registry("target")
VARIANCES = Registry("variance")
TIME_INPUTS = Registry("time input")
TIMES = Registry("time sampler")
WEIGHTINGS = Registry("weighting")
LOSSES = Registry("loss")
NORMS = Registry("norm")
ESTIMATES = Registry("image estimate")
GRADIENTS = Registry("way to differentiate a chain")
PENALTIES = Registry("penalty")
GATES = Registry("gate")
MULTIPLIERS = Registry("multiplier")
SAMPLERS = Registry("sampler")
SPACINGS = Registry("spacing of sampling times")
