"""A person's labels of a run's answers: the sample, the session that writes them, and where they are given."""
