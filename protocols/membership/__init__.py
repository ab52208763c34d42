"""Membership of a fleet: signed statements, and what a set of them amounts to."""
