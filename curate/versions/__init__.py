"""Kept conversations and a recipe → frozen versions, their differences, bundles and lineage."""
