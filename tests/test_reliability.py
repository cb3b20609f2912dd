"""Every promise of docs/reliability.md names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISES = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_each_promise_has_its_test():
    tables = {promise: by for promise, by in PROMISES if "`tests/" in by}
    shown = {promise: re.findall(r"`(tests/[\w/]+\.py)`", by) for promise, by in tables.items()}
    assert len(shown) >= 15
    assert [test for tests in shown.values() for test in tests if not (ROOT / test).is_file()] == []
