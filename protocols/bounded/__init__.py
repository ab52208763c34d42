"""Bounds of what comes from outside, checked on its bytes before values are made of them: a module for each format."""
