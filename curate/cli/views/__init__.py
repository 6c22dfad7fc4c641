"""Results of the libraries → tables and sentences on a terminal."""
