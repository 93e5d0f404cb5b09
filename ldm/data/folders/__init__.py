"""What the folders and names of a data set mean: splits, classes, repeats, masks, and what isn't a sample."""
