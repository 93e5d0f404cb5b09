"""One network, encoder or scheduler at a time, from another tool's names and settings to ours and back."""
