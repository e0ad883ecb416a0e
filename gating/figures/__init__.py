"""Pictures of a run: small functions from its tree to a matplotlib Figure, and a registry of which of them its data
allow."""
