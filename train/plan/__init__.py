"""A version and a recipe → an estimate of its training, before a model is loaded."""
