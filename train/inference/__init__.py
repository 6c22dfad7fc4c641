"""A model and prompts → answers, through the chat template of its training."""
