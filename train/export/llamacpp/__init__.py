"""llama.cpp as installed packages provide it: converter, quantiser, logits and server."""
