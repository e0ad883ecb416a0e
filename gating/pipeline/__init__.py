"""From a checked configuration to a finished store: what is asked, under which conditions, in which order."""
