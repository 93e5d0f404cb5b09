"""The trained model as its user sees it: loading, generating, editing, interpolating, saving.

What a model folder on disk holds is in `ldm.artifact`.
"""
