"""One source of images a file, all giving a pair of tables: training and validation."""
