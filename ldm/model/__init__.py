"""The trained model as its user sees it: loading, generating, editing, interpolating, saving."""
