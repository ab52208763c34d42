"""Images to and from the registries of the container world: OCI distribution 1.1, and plain https.

Our artifact: an image manifest whose first layer is the chunk index with where each chunk lies, and whose other layers
are packs, concatenated zstd frames of at most 64 MiB in all. Any registry keeps it and any tool copies it; a reader
that has an older version fetches only the frames it lacks, by ranges; `cat packs | zstd -d` is the whole disk.
"""
