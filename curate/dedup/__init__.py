"""Conversations → clusters of near-duplicates."""
