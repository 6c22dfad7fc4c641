"""A file of rows → conversations, origins and rejects in the store."""
