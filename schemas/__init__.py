"""Types of the project and the store: conversations, versions, runs, recipes. The bottom layer."""
