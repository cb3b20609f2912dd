"""What the runs were trained on."""

from xhat.report.contents import Contents
from xhat.report.html import by_entry, common_table, shared
from xhat.report.section import Section


def environment(contents: Contents) -> Section | None:
    """A table of what differs, and one of what all share; None if it is not known of any entry."""
    known = [(i, e.name, e.environment) for i, e in enumerate(contents.entries) if e.environment]
    if not known:
        return None
    keys, common = shared([values for *_, values in known])
    body = by_entry("environment that differs", keys, known) if keys else ""
    body += common_table("environment", common) if common else ""
    lead = f"What the run{'s were' if len(known) > 1 else ' was'} trained on." + (
        " First what differs, then what all share." if keys and common else ""
    )
    return Section("environment", "Environment", lead, body)
