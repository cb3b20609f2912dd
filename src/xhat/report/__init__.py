"""One self-contained page about runs: what is in it, and how it is written."""
