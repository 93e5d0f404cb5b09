"""What the autoencoders of stage one share, and those beside `AutoencoderKL`: `VQModel` and `AutoencoderTiny`."""
