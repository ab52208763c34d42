"""The life of this node's VMs: what is asked for, how each step is done and taken back, what is known of each."""
