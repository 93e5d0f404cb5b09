"""What a prepared data set holds and what may be wrong with it: copies, odd pixels, crops, captions, classes, maps."""
