"""Source files → conversations, origins and rejects in the store."""
