"""Training runs as the page sees them: start, list, watch, raise alerts."""
