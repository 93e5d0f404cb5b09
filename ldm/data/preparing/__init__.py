"""From listed samples to decoded tables: validation split, copies, decoding, and the summary."""
