"""The reference pages, made from what the code already says: one module a page with `page() -> str`."""
