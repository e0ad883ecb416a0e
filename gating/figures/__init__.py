"""Pictures of a run: functions from its tree to a matplotlib Figure, and a registry of what each needs and shows."""
