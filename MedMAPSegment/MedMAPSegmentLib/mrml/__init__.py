"""Helpers for MRML nodes that several files of the library need."""
