"""Image files to pixels: each format's reader, orientation, colour profile, and what can't be read."""
