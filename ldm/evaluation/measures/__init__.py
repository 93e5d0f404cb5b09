"""One measure a file, over sets of images or their features."""
