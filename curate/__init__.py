"""Curation: source files → scored, reviewed and deduplicated conversations → frozen versions."""
