"""The verbs of curation: from a file of rows to a frozen version. One module per command, named with -ing."""
