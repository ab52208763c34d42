"""The faces: REST, command line, Python client. Nothing imports this room."""
