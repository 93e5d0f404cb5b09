"""What an export writes beside weights: model card, report, dtype, and sources that open without this package."""
