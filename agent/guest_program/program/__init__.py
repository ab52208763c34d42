"""The program that runs in a guest: it serves commands, files and connections on the guest channel.

It needs Python 3.6 or later and its standard library, of which it loads as little as it can: `_socket` and `_signal`
in place of `socket` and `signal`, which would load `enum` and `collections`, a second of an emulated CPU.
It is sent into guests as a zip file (agent/guest_program/bundle.py), and shares no code with the agent.
"""
