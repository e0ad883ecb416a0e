"""An endpoint: requests join and leave one running batch, each with its own steering and its own guard."""
