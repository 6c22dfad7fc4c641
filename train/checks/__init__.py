"""Exported models → whether inference engines produce the training tokens."""
