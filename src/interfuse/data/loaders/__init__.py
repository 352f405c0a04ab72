"""Readers of document formats: bytes in, documents with exact positions out. Each format has a file of its own."""
