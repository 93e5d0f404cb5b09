"""What all readers of other tools' files share: JSON, names, kinds of values, and the files beside a file."""
