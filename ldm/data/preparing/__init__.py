"""From listed samples to decoded tables: validation split, duplicates, decoding, and the summary."""
