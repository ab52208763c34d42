"""Parsers of what comes from outside, as functions of bytes: for the corpus, for hypothesis, and for `scripts/fuzz`."""
