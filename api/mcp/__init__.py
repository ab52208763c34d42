"""`twinshare mcp`: the operations of a node as tools of the Model Context Protocol, in a process of its own.

Only `server` and `transports` import the SDK, and only `twinshare mcp` imports them.
"""
