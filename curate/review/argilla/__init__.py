"""Everything that knows Argilla: the server that `curate review serve` runs, and how a running one is spoken to."""
