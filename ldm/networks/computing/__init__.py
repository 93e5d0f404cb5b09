"""How a network is computed: precision, compiling, slices of a batch, strips and tiles of a large image."""
