"""The nouns of the project: what a conversation, a version, a run and a recipe are, and where they are kept."""
