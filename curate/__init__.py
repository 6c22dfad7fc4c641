"""The verbs of curation: from a file of rows to a frozen version. A command's module is its verb with -ing."""
