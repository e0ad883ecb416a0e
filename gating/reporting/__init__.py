"""A run in words: tables for a terminal, a page, a document."""
