"""The wire contract: what peers and REST clients say to each other. Sans-IO: no trio, no socket, no clock in here."""
