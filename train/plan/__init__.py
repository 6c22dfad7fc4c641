"""A version and a recipe → what training on it will be."""
