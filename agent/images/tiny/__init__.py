"""Builds `tiny`, a guest of a few MB, from the distribution's own packages: no root, no loop device, no internet.

The same packages give the same bytes. Root logs in on its serial console without a password: it is for demonstrations
and tests, and says so at the prompt.
"""
