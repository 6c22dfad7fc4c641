"""The verbs of training: from a frozen version to an adapter that names its data. Importing this is light."""
