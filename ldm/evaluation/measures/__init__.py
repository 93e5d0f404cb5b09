"""One measure per file, over sets of images or their features."""
