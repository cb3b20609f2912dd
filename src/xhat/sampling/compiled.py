"""A network that is compiled while samples are drawn."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from xhat.errors import RunError, first_line


@contextmanager
def compiled(net: nn.Module) -> Iterator[None]:
    """Calls of the network in here are compiled, for each shape that comes; after it they are as before.

    Raises:
        RunError: it cannot be compiled here, for example because there is no C++ compiler.
    """
    before = net._compiled_call_impl
    try:
        net.compile(dynamic=False)
    except RuntimeError as error:  # of this Python, for example
        raise _refusal(error) from None
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise _refusal(error) from None
    finally:
        net._compiled_call_impl = before


def _refusal(error: RuntimeError) -> RunError:
    return RunError(f"the network cannot be compiled here: {first_line(error)}: draw without compiling")
