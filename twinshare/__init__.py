"""twinshare: one pool of virtual machines out of several people's machines, with no control plane."""

__version__ = "0.1.0"
