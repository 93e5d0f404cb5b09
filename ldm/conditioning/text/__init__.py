"""Text as a condition: tokenizers, encoders trained along, frozen encoders, and what is too long for them."""
