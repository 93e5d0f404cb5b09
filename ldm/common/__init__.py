"""What every room uses: errors, the registry, files, randomness, devices, process ranks, checks of annotations.

Imports none of the other rooms.
"""
