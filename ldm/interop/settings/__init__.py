"""What the files of other tools declare beside their weights, read and checked one kind of setting at a time."""
