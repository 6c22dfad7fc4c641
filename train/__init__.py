"""A frozen version and a base model → an adapter whose manifest names its data. Importing this package is fast."""
