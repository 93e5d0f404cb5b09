"""What other tools' files declare in addition to weights, read and checked, one kind of setting per file."""
