"""One network, encoder or scheduler per file: names and settings of another tool converted to ours and back."""
