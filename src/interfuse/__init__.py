"""Interfuse: fuse what many models, documents and graphs know, and measure what was gained and what was lost."""
