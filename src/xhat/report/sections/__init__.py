"""The sections of a report, each a file with one function: contents -> Section, or None if there is nothing to show."""
