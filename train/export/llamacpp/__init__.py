"""Where llama.cpp is met: its converter, its quantiser, its logits and its server, as installed packages bring them."""
