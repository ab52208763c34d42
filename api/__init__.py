"""The outside of a node: REST, the command line, the Python client. No other package imports this one."""
