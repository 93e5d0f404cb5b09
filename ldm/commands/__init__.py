"""One command a file, and the command line that calls them."""
