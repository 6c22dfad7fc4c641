"""Conversations → questions for annotators; their answers → verdicts."""
