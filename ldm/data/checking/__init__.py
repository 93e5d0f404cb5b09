"""What a prepared data set contains and what may be wrong with it: copies, odd pixels, crops, captions, classes,
maps."""
