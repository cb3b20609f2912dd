"""The configs: first what differs, then what all share."""

from xhat.report.contents import Contents
from xhat.report.html import by_entry, common_table, shared
from xhat.report.section import Section


def differences(contents: Contents) -> Section | None:
    """A table of the keys that differ, and the rest folded away; None if no config is known."""
    known = [(i, e.name, e.config) for i, e in enumerate(contents.entries) if e.config]
    if not known:
        return None
    keys, common = shared([config for *_, config in known])
    if len(contents.entries) == 1:
        listed = common_table("config", common)
        listed = f'<details id="common"><summary>All {len(common)} keys</summary>{listed}</details>'
        return Section("differs", "Config", "The configuration of the run.", listed)
    table = by_entry("config keys that differ", keys, known) if keys else "<p>Nothing in the configs differs.</p>"
    rest = common_table("common config", common)
    body = f'{table}<details id="common"><summary>The config that all share ({len(common)} keys)</summary>{rest}</details>'
    return Section("differs", "What differs", "The configuration of the runs: first what differs, then what all share.", body)
