"""One source of images per file, each giving a pair of tables: training and validation."""
