"""Mutation testing of the critical areas: a change of one line that no test notices is a test that is missing.

Our own, because mutmut wraps functions (our service tables read their signatures, and module names come from links)
and cosmic-ray starts a whole interpreter for each of some ten times as many mutants.
"""
