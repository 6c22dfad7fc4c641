"""Exported models → whether engines see the tokens of the training."""
