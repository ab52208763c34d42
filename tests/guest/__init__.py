"""The test guests: `tick`, a boot sector that counts, and `tiny`, a small Linux, both built here and cached."""
