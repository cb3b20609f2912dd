"""An error is one line, whatever names are in it."""

import pytest

from xhat.errors import ConfigError, UsageError, XhatError


@pytest.mark.parametrize("kind", [XhatError, UsageError, ConfigError])
def test_what_cannot_be_printed_is_written_as_python_does(kind):
    error = kind('unknown key "a\nb\r\x1b[31m\u2028\ud800": é ± 漢')
    assert str(error) == r'unknown key "a\nb\r\x1b[31m\u2028\ud800": é ± 漢'
    assert str(kind()) == ""
