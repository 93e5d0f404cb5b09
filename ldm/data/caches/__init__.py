"""What is computed once for each data set: latents, captions and labels."""
