"""What a user can mend: an error of one line that names the cause and says what to change."""


class XhatError(ValueError):
    """What a user can mend; commands print it, in one line whatever the names in it are, and end with exit code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(XhatError):
    """An argument of a command."""


class ConfigError(XhatError):
    """A value or an expression of a config, or choices that do not fit together."""


class YamlError(ConfigError):
    """A file, or a value, that is no YAML or holds a key twice."""


class TooLargeError(YamlError):
    """A text whose values would take more stack or memory than anybody means."""


class DuplicateKeyError(YamlError):
    """A key that stands twice in one mapping."""


class DataError(XhatError):
    """Data that cannot be used."""


class DataNotFoundError(DataError):
    """A path of data that does not exist."""


class RunError(XhatError):
    """A run folder, a weights file or a checkpoint that cannot be used as asked."""


class BudgetError(XhatError):
    """Something of a size that there is no room for."""


class DamagedError(RunError):
    """A file that holds something else than was written; whoever reads it says which, and the way out."""


class SharedError(RunError):
    """What all processes of a training raise alike: the main one says it."""


def one_line(text: str) -> str:
    """A text with line breaks and other signs that cannot be printed as Python writes them: `\\n`, `\\x1b`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on whatever device."""
    kinds = ("OutOfMemoryError", "MemoryError")
    return any(k.__name__ in kinds for k in type(error).__mro__) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its first, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def with_kind(error: BaseException) -> str:
    """KeyError: 'x': the first line of an error of somebody else's code, which may mean little without its kind."""
    line, kind = first_line(error), type(error).__name__
    return kind if line == kind else f"{kind}: {line}"
