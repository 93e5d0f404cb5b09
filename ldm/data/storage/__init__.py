"""Tables: images and columns mapped from files, and how processes share them."""
