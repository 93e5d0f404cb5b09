"""What every room uses: errors, the registry of names, files, randomness, devices and process ranks. Knows none of
the others.
"""
