"""Choosing a model's `sites`: a few ordinary runs on the `select` split, from coarse to fine, and the file that they
lead to."""
