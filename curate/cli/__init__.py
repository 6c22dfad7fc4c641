"""The command line: every command, option, table, progress bar and text."""
