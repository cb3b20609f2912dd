"""Signatures are checked wherever the suite calls a function of xhat."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException


def checked(function):
    """beartype, an int being a float; functions whose hints it cannot check (Self, plain protocols) stay as they are."""
    try:
        return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    except BeartypeDecorHintException:
        return function
