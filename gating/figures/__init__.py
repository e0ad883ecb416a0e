"""Pictures of a run: small functions from its tree to a matplotlib Figure, and which of them its data allow."""
