"""An audit: how far personas move a model's refusal, by prompt, by steering and by adapter, against a policy."""
