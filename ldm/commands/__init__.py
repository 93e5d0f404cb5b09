"""One command per file, and the command line that calls them."""
