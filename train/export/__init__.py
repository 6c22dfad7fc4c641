"""A run → merged models, GGUF files, Modelfiles and servers."""
