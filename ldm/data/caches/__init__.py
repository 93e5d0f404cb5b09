"""What is computed once per data set: latents, captions and labels."""
