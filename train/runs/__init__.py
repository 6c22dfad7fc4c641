"""A version → a run: its adapter, manifest, verification and repetition."""
